"""What frozen models make of a picture, kept beside it in a shard."""
