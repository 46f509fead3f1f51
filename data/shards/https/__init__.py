"""Shards behind https addresses."""
