"""Shards of pictures: building them, and reading them in an order that any number of processes can continue.

A training reads through `data.shards.dataset.ShardLoader` with a transform from `data.shards.pictures`; `python -m
data.build` writes. The parts, from the bottom: `manifest` (what a folder holds), `index` (where samples lie in a tar
file), `sources`, `writing` and `building`, `reading` (bytes of one sample), `plan` (the order), `skips` (what could
not be read), `dataset` (batches), `remote` and `prefetch` (https).
"""
