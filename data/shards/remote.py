"""Shards behind https: fetched whole into a folder shared by all readers of the machine, then read like any other file.

Fetching whole shards keeps the order exact (a stream could only be shuffled within a buffer), lets a sha256 be
checked before anything is used, and asks a server for few large files instead of many small ones.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from data.shards.manifest import MANIFEST, Manifest, Shard
from seecoder.weights import atomic_path

logger = logging.getLogger(__name__)

UNREACHABLE = "unreachable shard"
_CHUNK = 1 << 20
_MANIFEST_LIMIT = 1 << 28  # bytes; a million shards need about 150 MB


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only: a server must not lead us to another scheme."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: "urllib.request.HTTPMessage",  # type: ignore[name-defined]
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme.lower() != "https":
            raise urllib.error.URLError(f"redirected to {newurl!r}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(url: str, timeout: float) -> IO[bytes]:
    """Open an https URL; refuse anything else, redirects included."""
    if urlsplit(url).scheme.lower() != "https":
        raise urllib.error.URLError(f"{url!r} is not https")
    return urllib.request.build_opener(_HttpsOnly()).open(url, timeout=timeout)


@dataclass(frozen=True)
class Fetcher:
    """Fetches shards into a folder.

    Attributes:
        folder: Where fetched shards are kept; shared by workers and ranks of one machine, and by later runs.
        limit: Bytes that fetched shards may take in all; the ones unused for longest go first.
        attempts: How often a shard is tried before it is given up for `patience` seconds.
        back_off: Seconds before the second attempt; doubled for each further one.
        timeout: Seconds without an answer after which an attempt has failed.
        longest: Seconds that one attempt may take in all: a server that drips is as good as dead.
        patience: Seconds after which a shard that was given up is tried again.
    """

    folder: Path
    limit: int = 200 * 10**9
    attempts: int = 5
    back_off: float = 1.0
    timeout: float = 30.0
    longest: float = 1800.0
    patience: float = 300.0

    def manifest(self, url: str) -> Manifest:
        """Read `manifest.json` below a URL.

        Raises:
            FileNotFoundError: It cannot be had.
            ValueError: It is unusable.
        """
        address = url if url.endswith(".json") else f"{url.rstrip('/')}/{MANIFEST}"
        for pause in self._pauses():
            try:
                with open_url(address, self.timeout) as answer:
                    return Manifest.from_json(answer.read(_MANIFEST_LIMIT), address)
            except (OSError, HTTPException) as error:
                self._wait(address, error, pause)
        raise FileNotFoundError(f"`{address}` could not be read in {self.attempts} attempts. Check the address.")

    def fetch(self, url: str, shard: Shard) -> Path | None:
        """Bring a shard onto this machine, unless it is here.

        Returns:
            Its local path, or None if it could not be had or is not what the manifest says.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # Shards of different places may share a name; the digest of the address keeps them apart.
        target = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{shard.name}"
        failed = target.with_name(target.name + ".failed")
        with _lock(target.with_name(target.name + ".lock")):  # one reader fetches, the others wait and find it here
            if target.exists() and (shard.bytes is None or target.stat().st_size == shard.bytes):
                os.utime(target)
                return target
            if failed.exists() and time.time() - failed.stat().st_mtime < self.patience:
                return None
            for pause in self._pauses():
                try:
                    self._download(url, shard, target)
                except (OSError, HTTPException) as error:
                    self._wait(url, error, pause)
                else:
                    failed.unlink(missing_ok=True)
                    self._make_room(target)
                    return target
            failed.touch()
        return None

    def _download(self, url: str, shard: Shard, target: Path) -> None:
        digest, size, deadline = hashlib.sha256(), 0, time.monotonic() + self.longest
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            with open_url(url, self.timeout) as answer:
                while chunk := answer.read(_CHUNK):
                    size += len(chunk)
                    if shard.bytes is not None and size > shard.bytes:
                        break  # never let a server fill the disk
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"only {size} bytes came in {self.longest:g} s")
                    digest.update(chunk)
                    file.write(chunk)
            if shard.bytes is not None and size != shard.bytes:
                raise OSError(f"{size} bytes came, the manifest says {shard.bytes}")
            if shard.sha256 is not None and digest.hexdigest() != shard.sha256:
                raise OSError("its sha256 is not the manifest's")

    def _pauses(self) -> Iterator[float | None]:
        """Seconds to wait after each failed attempt; None after the last."""
        yield from (self.back_off * 2**attempt for attempt in range(self.attempts - 1))
        yield None

    def _wait(self, url: str, error: Exception, pause: float | None) -> None:
        what = "given up" if pause is None else f"trying again in {pause:g} s"
        logger.warning("`%s` could not be fetched (%s): %s", url, error, what)
        time.sleep(pause or 0)

    def _make_room(self, newest: Path) -> None:
        """Remove the shards that were not used for longest; whoever has one open keeps it until closed."""
        files = sorted(self.folder.glob("*.tar"), key=lambda path: _stat(path)[0])
        total = sum(_stat(path)[1] for path in files)
        for path in files:
            if total <= self.limit or path == newest:
                break
            total -= _stat(path)[1]
            path.unlink(missing_ok=True)


def _stat(path: Path) -> tuple[float, int]:
    """Time of last use and size; zeros if another process removed it meanwhile."""
    try:
        status = path.stat()
    except OSError:
        return 0.0, 0
    return status.st_mtime, status.st_size


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file lock; the system gives it back if the holder is killed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
