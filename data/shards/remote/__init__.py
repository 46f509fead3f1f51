"""Shards that are not on this machine: behind https addresses, and in stores."""
