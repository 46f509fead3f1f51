"""Building shards from pictures or scenes."""
