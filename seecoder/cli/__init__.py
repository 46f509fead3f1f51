"""The command `seecoder`: vary, panorama, encode, eval, export, import, info, app."""

from seecoder.cli.commands import build_parser, main

__all__ = ["build_parser", "main"]
