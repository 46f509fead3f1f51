"""Shards of pictures: building them, and reading them in an order that any number of processes can continue.

`manifest` says what a folder holds, `index` where samples lie in a tar file, `plan` in which order they are read.
"""
