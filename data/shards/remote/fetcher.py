"""Shards behind https and in stores: fetched whole into a folder that all readers share, then read as any other file.

Fetching whole shards keeps the order exact (a stream could only be shuffled within a buffer), lets a sha256 be
checked before anything is used, and asks a server for few large files instead of many small ones.
"""

import email.utils
import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from data.shards.locks import locked
from data.shards.manifest import MANIFEST, Manifest, Shard
from data.shards.remote.addresses import file_address, folder_address, open_url, redacted
from seecoder.weights.atomic import atomic_path

logger = logging.getLogger(__name__)

UNREACHABLE = "unreachable shard"
_CHUNK = 1 << 20
_MANIFEST_LIMIT = 1 << 28  # bytes; a million shards need about 150 MB
_PASSING_CODES = (408, 425, 429)  # of those below 500: too slow, too early, too many requests
_jitter = random.SystemRandom()  # not the seeded one, which is the training's

Result = TypeVar("Result")


class GivenUp(Exception):
    """A file that could not be had.

    Attributes:
        attempts: How often it was tried.
        error: What the last attempt ended with.
    """

    def __init__(self, attempts: int, error: Exception) -> None:
        super().__init__(attempts, error)
        self.attempts, self.error = attempts, error


@dataclass(frozen=True)
class Fetcher:
    """Fetches shards into a folder.

    Attributes:
        folder: Where fetched shards are kept; shared by workers and ranks of one machine, and by later runs.
        limit: Bytes that fetched shards may take in all; the ones unused for longest go first.
        attempts: How often a shard is tried before it is given up for `patience` seconds; once, where a shard of the
            same server was just given up: a dead server must not hold up every shard for all its attempts.
        back_off: Seconds before the second attempt, doubled for each further one. A random fraction of up to a half is
            left away, so that machines that were turned away together do not come back together.
        longest_pause: Seconds that a pause lasts at most, whatever the server asks for with `Retry-After`.
        timeout: Seconds without an answer after which an attempt has failed.
        longest: Seconds that one attempt may take in all: a server that drips is as good as dead.
        patience: Seconds after which a shard that was given up is tried again.
    """

    folder: Path
    limit: int = 200 * 10**9
    attempts: int = 5
    back_off: float = 1.0
    longest_pause: float = 60.0
    timeout: float = 30.0
    longest: float = 1800.0
    patience: float = 300.0

    def manifest(self, url: str) -> Manifest:
        """Read `manifest.json` below a URL.

        Raises:
            FileNotFoundError: It cannot be had.
            ValueError: It is unusable.
        """
        address = file_address(folder_address(url, MANIFEST), MANIFEST)
        try:
            text = self._retry(address, lambda: self._read(address))
        except GivenUp as trouble:
            attempts = f"{trouble.attempts} attempt{'s' * (trouble.attempts != 1)}"
            raise FileNotFoundError(
                f"`{redacted(address)}` could not be read in {attempts} ({trouble.error}). Check the address."
            ) from trouble.error
        return Manifest.from_json(text, redacted(address))

    def fetch(self, url: str, shard: Shard) -> Path | None:
        """Bring a shard onto this machine, unless it is here.

        Returns:
            Its local path, or None if it could not be had or is not what the manifest says.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # Shards of different places may share a name, and a place may get other shards of the same names and sizes.
        digest = hashlib.sha256(f"{url}{shard.sha256 or ''}".encode()).hexdigest()
        target = self.folder / f"{digest[:16]}-{shard.name}"
        failed = target.with_name(target.name + ".failed")
        with locked(target.with_name(target.name + ".lock")):  # one reader fetches, the others wait and find it here
            if target.exists() and (shard.bytes is None or target.stat().st_size == shard.bytes):
                os.utime(target)
                return target
            if self._is_fresh(failed):
                return None
            down = self.folder / f"{hashlib.sha256(urlsplit(url).netloc.encode()).hexdigest()[:16]}.down"
            try:
                self._retry(url, lambda: self._download(url, shard, target), 1 if self._is_fresh(down) else None)
            except GivenUp as trouble:
                failed.touch()
                if _is_of_server(trouble.error):
                    down.touch()
                return None
            for mark in (failed, down):
                mark.unlink(missing_ok=True)
            self._make_room(target)
            return target

    def _is_fresh(self, mark: Path) -> bool:
        """Whether something was marked as failed no longer ago than `patience`."""
        try:
            return abs(time.time() - mark.stat().st_mtime) < self.patience  # a server's clock may be ahead
        except FileNotFoundError:  # also where another reader removes it just now
            return False

    def _retry(self, url: str, action: Callable[[], Result], attempts: int | None = None) -> Result:
        """Try until it succeeds, by default `self.attempts` times.

        Raises:
            GivenUp: It was tried often enough, or failed for good.
        """
        attempt, max_attempts = 0, self.attempts if attempts is None else attempts
        while True:
            attempt += 1
            try:
                return action()
            except (OSError, HTTPException) as error:
                if isinstance(error, HTTPError) and error.fp is not None:
                    error.close()  # it holds the connection
                if attempt >= max_attempts or not _is_passing(error):
                    logger.warning("`%s` could not be fetched (%s): given up", redacted(url), error)
                    raise GivenUp(attempt, error) from error
                pause = self._pause(attempt, error)
                logger.warning("`%s` could not be fetched (%s): trying again in %.3g s", redacted(url), error, pause)
                time.sleep(pause)

    def _pause(self, attempt: int, error: Exception) -> float:
        """Seconds to wait after a failed attempt, counted from 1: never less than after the one before."""
        own = self.back_off * 2 ** (attempt - 1) * _jitter.uniform(0.5, 1.0)
        return min(max(own, _retry_after(error)), self.longest_pause)

    def _receive(self, url: str) -> Iterator[bytes]:
        """Yield what a server sends, piece by piece.

        Raises:
            OSError: It is not whole, or took too long.
        """
        deadline, size = time.monotonic() + self.longest, 0
        with open_url(url, self.timeout) as answer:
            announced = getattr(answer, "length", getattr(answer, "size", None))  # None where the server does not say
            # `read` would wait until a whole chunk is there, and a drip would keep it for ever; stores have no other.
            while size != announced and (piece := getattr(answer, "read1", answer.read)(_CHUNK)):
                size += len(piece)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"only {size} bytes came in {self.longest:g} s")
                yield piece
        if announced is not None and size != announced:
            raise OSError(f"{size} of {announced} bytes came")

    def _read(self, url: str) -> bytes:
        content = bytearray()
        for piece in self._receive(url):
            content += piece
            if len(content) > _MANIFEST_LIMIT:
                raise OSError(f"it is larger than {_MANIFEST_LIMIT} bytes")
        return bytes(content)

    def _download(self, url: str, shard: Shard, target: Path) -> None:
        digest, size = hashlib.sha256(), 0
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            for piece in self._receive(url):
                size += len(piece)
                if shard.bytes is not None and size > shard.bytes:
                    break  # never let a server fill the disk
                digest.update(piece)
                file.write(piece)
            if shard.bytes is not None and size != shard.bytes:
                raise OSError(f"{size} bytes came, the manifest says {shard.bytes}")
            if shard.sha256 is not None and digest.hexdigest() != shard.sha256:
                raise OSError("its sha256 is not the manifest's")

    def _make_room(self, newest: Path) -> None:
        """Remove the shards that were not used for longest; whoever has one open keeps it until closed."""
        found = {}
        for path in self.folder.glob("*.tar"):
            with suppress(OSError):  # another process removed it meanwhile
                found[path] = path.stat()
        total = sum(status.st_size for status in found.values())
        for path in sorted(found, key=lambda path: found[path].st_mtime):
            if total <= self.limit or path == newest:
                break
            total -= found[path].st_size
            path.unlink(missing_ok=True)


def _is_passing(error: Exception) -> bool:
    """Whether another attempt may help: not where a server says that a file is not there, or not for us."""
    passing = not isinstance(error, HTTPError) or error.code >= 500 or error.code in _PASSING_CODES
    return passing and not isinstance(error, FileNotFoundError | PermissionError)


def _is_of_server(error: Exception) -> bool:
    """Whether a server does not answer, or only says that it cannot: nothing about the one file it was asked for."""
    if isinstance(error, HTTPError):
        return error.code >= 500
    return isinstance(error, URLError | TimeoutError | ConnectionError | HTTPException)


def _retry_after(error: Exception) -> float:
    """Seconds that a server asks to be left alone, 0 if it does not say."""
    value = error.headers.get("Retry-After", "") if isinstance(error, HTTPError) and error.headers else ""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):  # neither a number nor a date
        return 0.0
