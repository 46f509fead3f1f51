"""Decoding and encoding large pictures in tiles, with the normalisation of the whole picture."""
