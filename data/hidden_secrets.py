"""Logins and tokens stay out of all that a program says, keeps and shows: one scrubber, where text leaves it."""

import ctypes
import io
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from data.shards.remote.addresses import ADDRESS, redacted

_SECRET = re.compile(r"(?i)token|secret|passw|credential|(?:api|access)_?key")  # names of variables
_known: set[str] = set()  # errors of libraries quote parts of addresses that look like nothing


def scrubbed(text: str) -> str:
    """A text with its addresses as `redacted` shows them, and without secrets that are known."""
    text = redacted(text)
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, "...")
    return text


def learn_secrets(text: str) -> bool:
    """Note passwords and tokens of the addresses in a text; whether any are known now."""
    for _, login, _, query in ADDRESS.findall(text):
        password = login.removesuffix("@").partition(":")[2] or login.removesuffix("@")
        values = [word.partition("=")[2] for word in re.split("[?&#]", query)]
        # Short ones, words and numbers of a query stand in other texts, too.
        secrets = [password, *re.split("[/?#]", password), *(value for value in values if not value.isalpha())]
        forms = {form for word in secrets for form in (word, unquote(word))}
        _known.update(form for form in forms if len(form) > 5 and not form.isdecimal())
    return bool(_known)


def hide_secrets() -> None:
    """Hide the secrets of the command line in what this process prints from now on, and in what `ps` shows of it."""
    learn_secrets("\n".join(sys.argv))
    values = [value for name, value in os.environ.items() if _SECRET.search(name) and not os.path.exists(value)]
    _known.update(value for value in values if len(value) > 5 and not value.isalpha() and not value.isdecimal())
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(sys, name, _ScrubbedStream(stream.buffer, stream.encoding, stream.errors, line_buffering=True))
    with suppress(OSError, ValueError, IndexError):  # other systems than Linux
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, stop = int(fields[45]), int(fields[46])  # `arg_start` and `arg_end` of proc(5)
        shown = ctypes.string_at(start, stop - start)
        for secret in map(str.encode, _known):
            shown = shown.replace(secret, b"*" * len(secret))
        ctypes.memmove(start, shown, len(shown))


class _ScrubbedStream(io.TextIOWrapper):
    """A stream whose text is scrubbed before it leaves."""

    def write(self, text: str, /) -> int:
        return super().write(scrubbed(text))
