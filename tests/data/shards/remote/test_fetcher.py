"""Shards behind https: checked, fetched once, tried again, given up aloud; no network is used here."""

import hashlib
import io
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.registry import _registry

from data.shards.manifest import read_manifest
from data.shards.reading.shard_loader import ShardLoader
from data.shards.reading.square_image import SquareImage
from data.shards.remote import addresses
from data.shards.remote import fetcher as fetching
from data.shards.remote.addresses import open_url
from data.shards.remote.fetcher import Fetcher
from data.shards.shard_set import open_shards
from tests.fixtures.shards import make_loader

BASE = "https://host/shards"


class Answer(io.BytesIO):
    """What a server sends without saying how much it is."""

    length = None


class Server:
    """Answers for a folder; counts what is asked, and misbehaves on demand."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, Counter[str]()
        self.failures: dict[str, list[Exception | bytes]] = {}

    def open(self, url: str, timeout: float) -> Answer:
        name = url.removeprefix(BASE + "/")
        self.asked[name] += 1
        if self.failures.get(name):
            failure = self.failures[name].pop(0)
            if isinstance(failure, Exception):
                raise failure
            return Answer(failure)
        try:
            return Answer((self.folder / name).read_bytes())
        except FileNotFoundError:
            raise urllib.error.HTTPError(url, 404, "Not Found", None, None) from None  # type: ignore[arg-type]


@pytest.fixture
def server(make_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Server:
    own = Server(make_shards([4, 5, 6]))
    monkeypatch.setattr(fetching, "open_url", own.open)
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    return own


def loader(fetcher: Fetcher) -> ShardLoader:
    transform = SquareImage(8)
    return make_loader(BASE, transform, 1, rank=0, world_size=1, batches=15, ceiling=1.0, fetcher=fetcher, window=2)


def ids(own: ShardLoader) -> list[int]:
    return sorted(int(batch["sample_id"]) for batch in own)


def test_remote_shards_give_what_local_ones_give(server: Server, tmp_path: Path):
    own = loader(Fetcher(tmp_path / "cache"))
    assert ids(own) == list(range(15))
    local = make_loader(server.folder, SquareImage(8), 1, rank=0, world_size=1, window=2)
    assert own.dataset.reader.shards.fingerprint == local.dataset.reader.shards.fingerprint, (
        "a run may move from one to the other"
    )
    again = loader(Fetcher(tmp_path / "cache"))
    assert ids(again) == list(range(15))
    assert {name: count for name, count in server.asked.items() if name.endswith(".tar")} == dict.fromkeys(
        ("00000.tar", "00001.tar", "00002.tar"), 1
    ), "each is fetched once"


def test_passing_trouble_is_overcome(server: Server, tmp_path: Path):
    server.failures = {
        "manifest.json": [TimeoutError("slow")],
        "00001.tar": [
            urllib.error.URLError("down"),
            b"half",
            (server.folder / "00000.tar").read_bytes(),
            OSError("reset"),
        ],
    }
    own = loader(Fetcher(tmp_path / "cache"))
    assert ids(own) == list(range(15))
    assert server.asked["00001.tar"] == 5
    assert not own.skips.counts


def test_a_dead_shard_is_given_up_counted_and_named(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    server.failures["00001.tar"] = [urllib.error.URLError("down") for _ in range(99)]
    own = loader(Fetcher(tmp_path / "cache", attempts=3))
    assert set(ids(own)) == set(range(15)) - set(range(4, 9))
    assert own.skips.counts == {fetching.UNREACHABLE: 5}
    assert list(own.skips.names) == [f"{BASE}/00001.tar"]
    assert server.asked["00001.tar"] == 3, "patience: not tried again for each sample"
    assert "given up" in caplog.text


def test_what_is_not_the_manifests_shard_is_not_used(server: Server, tmp_path: Path):
    fetcher = Fetcher(tmp_path / "cache", attempts=2)
    shard = read_manifest(server.folder).shards[0]
    data = bytearray((server.folder / shard.name).read_bytes())
    data[600] ^= 1
    server.failures = {shard.name: [bytes(data), bytes(data) + b"x" * 10**6]}
    assert fetcher.fetch(f"{BASE}/{shard.name}", shard) is None
    assert not list((tmp_path / "cache").glob("*.tar*partial"))
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_a_dripping_server_is_given_up(server: Server, tmp_path: Path):
    shard = read_manifest(server.folder).shards[0]
    assert Fetcher(tmp_path / "cache", attempts=2, longest=-1.0).fetch(f"{BASE}/{shard.name}", shard) is None
    assert server.asked[shard.name] == 2
    assert Fetcher(tmp_path / "cache", patience=0.0).fetch(f"{BASE}/{shard.name}", shard) is not None


def test_many_readers_fetch_once(server: Server, tmp_path: Path):
    fetcher, shard = Fetcher(tmp_path / "cache"), read_manifest(server.folder).shards[0]
    threads = [threading.Thread(target=fetcher.fetch, args=(f"{BASE}/{shard.name}", shard)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked[shard.name] == 1


def test_the_cache_stays_below_its_limit(server: Server, tmp_path: Path):
    shards = read_manifest(server.folder).shards
    sizes = [shard.bytes or 0 for shard in shards]
    fetcher = Fetcher(tmp_path / "cache", limit=sizes[1] + sizes[2])
    for shard in shards:
        assert fetcher.fetch(f"{BASE}/{shard.name}", shard) is not None
    kept = sorted(path.name.split("-")[1] for path in (tmp_path / "cache").glob("*.tar"))
    assert kept == ["00001.tar", "00002.tar"]


def test_same_names_of_different_places_do_not_collide(server: Server, tmp_path: Path):
    fetcher, shards = Fetcher(tmp_path / "cache"), read_manifest(server.folder).shards
    assert fetcher.fetch(f"{BASE}/00000.tar", shards[0]) != fetcher.fetch(f"{BASE}/00001.tar", shards[1])
    assert fetcher.fetch(f"{BASE}/00000.tar", shards[0]) != fetcher.fetch("https://other/00000.tar", shards[0])


def test_no_manifest_no_data(server: Server, tmp_path: Path):
    server.failures["manifest.json"] = [urllib.error.URLError("down") for _ in range(2)]
    with pytest.raises(FileNotFoundError, match=r"manifest\.json` could not be read in 2 attempts"):
        open_shards(BASE, Fetcher(tmp_path / "cache", attempts=2))
    with pytest.raises(ValueError, match="give a `cache` folder"):
        open_shards(BASE)


def test_only_https_is_opened_and_followed():
    for url in ("http://host/a", "file:///etc/passwd", "ftp://host/a", "data:,x"):
        with pytest.raises(urllib.error.URLError, match="not https"):
            open_url(url, 1)
    request = urllib.request.Request(f"{BASE}/a")
    redirect = addresses._HttpsOnly().redirect_request
    for target in ("http://host/a", "file:///etc/passwd", "ftp://host/a"):
        with pytest.raises(urllib.error.URLError, match="not https"):
            redirect(request, io.BytesIO(), 302, "Found", {}, target)  # type: ignore[arg-type]
    followed = redirect(request, io.BytesIO(), 302, "Found", {}, "https://elsewhere/a")  # type: ignore[arg-type]
    assert followed is not None
    assert followed.full_url == "https://elsewhere/a"


def test_a_shard_that_was_exchanged_is_fetched_again(server: Server, tmp_path: Path):
    fetcher = Fetcher(tmp_path / "cache")
    shard = read_manifest(server.folder).shards[0]
    old = fetcher.fetch(f"{BASE}/{shard.name}", shard)
    data = bytearray((server.folder / shard.name).read_bytes())
    data[600] ^= 1
    (server.folder / shard.name).write_bytes(data)
    exchanged = replace(shard, sha256=hashlib.sha256(data).hexdigest())
    new = fetcher.fetch(f"{BASE}/{shard.name}", exchanged)
    assert old is not None
    assert new is not None
    assert new.read_bytes() == data
    assert fetcher.fetch(f"{BASE}/{shard.name}", shard) == old, "and each is kept"


class Store(fsspec.AbstractFileSystem):
    """A store of objects that knows one folder, and misbehaves on demand."""

    protocol = "s3"
    folder = Path()
    failures: ClassVar[list[Exception]] = []
    asked = 0

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        type(self).asked += 1
        if self.failures:
            raise self.failures.pop(0)
        return (self.folder / path.removeprefix("bucket/shards/")).open(mode)


@pytest.fixture
def store(make_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> type[Store]:
    monkeypatch.setitem(_registry, "s3", Store)
    monkeypatch.setattr(Store, "folder", make_shards([4, 5]))
    monkeypatch.setattr(Store, "asked", 0)
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    return Store


def test_shards_of_a_store_are_fetched_checked_and_tried_again(store: type[Store], tmp_path: Path):
    store.failures.extend([TimeoutError("slow"), RuntimeError("of the store's own library"), ConnectionError("reset")])
    fetcher = Fetcher(tmp_path / "cache")
    own = make_loader(
        "s3://bucket/shards", SquareImage(8), 1, rank=0, world_size=1, batches=9, fetcher=fetcher, window=2
    )
    assert ids(own) == list(range(9))
    assert store.asked == 6, "the manifest four times, each shard once"
    local = make_loader(store.folder, SquareImage(8), 1, rank=0, world_size=1, window=2)
    assert own.dataset.reader.shards.fingerprint == local.dataset.reader.shards.fingerprint
    shard = read_manifest(store.folder).shards[0]
    data = bytearray((store.folder / shard.name).read_bytes())
    data[600] ^= 1
    (store.folder / shard.name).write_bytes(data)
    assert Fetcher(tmp_path / "other", attempts=2).fetch(f"s3://bucket/shards/{shard.name}", shard) is None


@pytest.mark.parametrize("failure", [FileNotFoundError("no such key"), PermissionError("Access Denied")])
def test_what_a_store_refuses_is_not_asked_for_again(store: type[Store], failure: Exception, tmp_path: Path):
    store.failures.append(failure)
    with pytest.raises(FileNotFoundError, match=r"`s3://bucket/shards/manifest.json` could not be read in 1 attempt "):
        Fetcher(tmp_path).manifest("s3://bucket/shards")
    assert store.asked == 1


def test_the_package_of_a_store_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(
        ValueError, match=r"`s3://bucket/manifest\.json` cannot be opened without s3fs: `pip install s3fs`"
    ):
        Fetcher(tmp_path).manifest("s3://login:secret@bucket")
