"""A slow, busy or dead server of shards: asked again after growing pauses, given up aloud, and the run goes on."""

import base64
import email.utils
import itertools
import json
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.shards.manifest import Shard, read_manifest
from data.shards.reading.shard_loader import ShardLoader
from data.shards.reading.square_image import SquareImage
from data.shards.remote import addresses
from data.shards.remote import fetcher as fetching
from data.shards.remote.fetcher import UNREACHABLE, Fetcher
from data.shards.shard_set import open_shards
from tests.fixtures.shards import make_loader

NAME = "00001.tar"  # samples 4 to 8 of 15
LOST = set(range(4, 9))


@dataclass
class Fault:
    """What a server does in place of sending a file.

    Attributes:
        code: Answers with this, 200 sends the file in a way that `body` says.
        after: `Retry-After` header.
        body: "hang" sends nothing, "half" closes in the middle, "unannounced half" has not said how much there is,
            "drip" sends a byte every hundredth of a second for three seconds, "" is whole.
        target: Where a redirect leads.
    """

    code: int = 200
    after: str | None = None
    body: str = ""
    target: str | None = None


class Host:
    """A real server on this machine; misbehaves for each file as often as it is told."""

    def __init__(self, folder: Path):
        self.folder, self.faults = folder, defaultdict[str, list[Fault]](list)
        self.asked: list[tuple[str, float]] = []
        self.headers: list[dict[str, str]] = []
        self.closing = threading.Event()
        own = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                own.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.server.server_port}/shards"

    def requests(self, name: str = NAME) -> int:
        return Counter(asked for asked, _ in self.asked)[name]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.partition("?")[0].rpartition("/")[2]
        self.asked.append((name, time.monotonic()))
        self.headers.append(dict(handler.headers) | {"path": handler.path})
        fault = self.faults[name].pop(0) if self.faults[name] else Fault()
        content = (self.folder / name).read_bytes() if fault.code == 200 else b"no"
        if fault.body == "hang":
            self.closing.wait(20)
            return
        handler.send_response(fault.code)
        if fault.body != "unannounced half":
            handler.send_header("Content-Length", str(len(content)))
        for header, value in (("Retry-After", fault.after), ("Location", fault.target)):
            if value is not None:
                handler.send_header(header, value)
        handler.end_headers()
        if fault.body == "drip":
            for byte in content[:300]:
                if self.closing.wait(0.01):
                    return
                handler.wfile.write(bytes([byte]))
        else:
            handler.wfile.write(content[: len(content) // 2] if fault.body.endswith("half") else content)

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def host(make_shards: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A server without a certificate: what is https for the reader is http on the way, and all else is as it is."""
    own = Host(make_shards([4, 5, 6]))

    def open_plainly(url: str, timeout: float) -> Any:
        return addresses.open_url(url.replace("https:", "http:", 1), timeout)

    monkeypatch.setattr(addresses, "SCHEME", "http")
    monkeypatch.setattr(fetching, "open_url", open_plainly)
    yield own
    own.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that would have been made, in place of making them."""
    made: list[float] = []
    clock = SimpleNamespace(sleep=made.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(fetching, "time", clock)  # a lock's own waiting is left alone
    return made


def shard_of(host: Host) -> Shard:
    return read_manifest(host.folder).shards[1]


def fetch(host: Host, fetcher: Fetcher) -> Path | None:
    return fetcher.fetch(f"{host.address}/{NAME}", shard_of(host))


@pytest.fixture
def fetcher(tmp_path: Path) -> Callable[..., Fetcher]:
    def make(**settings: Any) -> Fetcher:
        return Fetcher(tmp_path / "cache", **{"timeout": 0.3, **settings})

    return make


@pytest.mark.parametrize("failures", range(6))
def test_a_server_that_fails_a_few_times_is_asked_after_growing_pauses(
    host: Host, pauses: list[float], fetcher: Callable[..., Fetcher], failures: int
):
    host.faults[NAME] = [Fault(503)] * failures
    found = fetch(host, fetcher(attempts=5, back_off=2.0))
    assert (found is not None) == (failures < 5)
    assert host.requests() == min(failures + 1, 5)
    assert len(pauses) == min(failures, 4)
    for attempt, pause in enumerate(pauses):
        assert 0.5 * 2.0 * 2**attempt <= pause <= 2.0 * 2**attempt
    assert pauses == sorted(pauses)


def test_pauses_have_an_upper_limit_and_differ_between_readers(pauses: list[float], tmp_path: Path):
    fetcher = Fetcher(tmp_path / "cache", attempts=12, back_off=1.0, longest_pause=60.0)

    def fail() -> None:
        raise OSError("down")

    for _ in range(40):
        with pytest.raises(fetching.GivenUp):
            fetcher._retry("https://host/a.tar", fail)
    runs = [pauses[start : start + 11] for start in range(0, len(pauses), 11)]
    assert len(runs) == 40
    for attempt, column in enumerate(zip(*runs, strict=True)):
        low, high = 0.5 * 2**attempt, 2.0**attempt
        assert min(column) >= min(low, 60)
        assert max(column) <= min(high, 60)
        if high < 60:
            assert len(set(column)) == 40, "machines that were turned away together come back one by one"
            assert max(column) - min(column) > 0.6 * (high - low)
    assert all(run == sorted(run) for run in runs)
    assert max(pauses) == 60


def test_the_pauses_are_really_made(host: Host, fetcher: Callable[..., Fetcher]):
    host.faults[NAME] = [Fault(500)] * 3
    assert fetch(host, fetcher(back_off=0.2)) is not None
    times = [when for name, when in host.asked if name == NAME]
    waited = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert [wait >= 0.1 * 2**attempt for attempt, wait in enumerate(waited)] == [True] * 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_what_is_not_there_or_not_for_us_is_not_asked_for_again(
    host: Host, pauses: list[float], fetcher: Callable[..., Fetcher], code: int
):
    host.faults[NAME] = [Fault(code)]
    assert fetch(host, fetcher()) is None
    assert (host.requests(), pauses) == (1, [])


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_for_again(host: Host, pauses: list[float], fetcher: Callable[..., Fetcher], code: int):
    host.faults[NAME] = [Fault(code)]
    assert fetch(host, fetcher()) is not None
    assert (host.requests(), len(pauses)) == (2, 1)


def in_seconds(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    ("after", "least", "most"),
    [
        (lambda: "7", 7, 7),
        (lambda: " 7 ", 7, 7),
        (lambda: in_seconds(20), 18, 20),
        (lambda: "0", 0.5, 1),
        (lambda: in_seconds(-500), 0.5, 1),
        (lambda: "99999", 45, 45),
        (lambda: "9" * 5000, 45, 45),
        (lambda: in_seconds(99999), 45, 45),
        (lambda: "soon", 0.5, 1),
        (lambda: "-5", 0.5, 1),
        (lambda: "nan", 0.5, 1),
        (lambda: "Mon, 99 Foo 2000 00:00:00 GMT", 0.5, 1),
        (lambda: None, 0.5, 1),
    ],
)
def test_a_server_is_left_alone_for_as_long_as_it_asks_within_the_limit(
    host: Host, pauses: list[float], fetcher: Callable[..., Fetcher], code: int, after: Any, least: float, most: float
):
    host.faults[NAME] = [Fault(code, after=after())]
    assert fetch(host, fetcher(longest_pause=45.0)) is not None
    assert len(pauses) == 1
    assert least <= pauses[0] <= most


@pytest.mark.parametrize("body", ["hang", "half", "drip"])
def test_answers_that_do_not_come_whole_are_asked_for_again(
    host: Host, pauses: list[float], fetcher: Callable[..., Fetcher], body: str, caplog: pytest.LogCaptureFixture
):
    host.faults[NAME] = [Fault(body=body)] * 2
    start = time.monotonic()
    found = fetch(host, fetcher(longest=0.4))
    assert time.monotonic() - start < 5
    assert found is not None
    assert found.read_bytes() == (host.folder / NAME).read_bytes()
    assert (host.requests(), len(pauses)) == (3, 2)
    expected = {"hang": "timed out", "half": "of 20480 bytes came", "drip": "bytes came in 0.4 s"}[body]
    assert [expected in record.getMessage() for record in caplog.records] == [True, True]


def test_half_a_shard_that_nobody_measured_is_not_taken_for_the_whole(
    host: Host, pauses: list[float], fetcher: Callable[..., Fetcher]
):
    host.faults[NAME] = [Fault(body="half")]
    found = fetcher().fetch(f"{host.address}/{NAME}", Shard(NAME, 5))
    assert found is not None
    assert found.read_bytes() == (host.folder / NAME).read_bytes()
    assert host.requests() == 2


def test_of_unannounced_length_only_the_manifests_counts(
    host: Host, pauses: list[float], fetcher: Callable[..., Fetcher]
):
    host.faults[NAME] = [Fault(body="unannounced half")]
    assert fetch(host, fetcher()) is not None
    assert host.requests() == 2


@pytest.mark.parametrize("fault", [Fault(body="half"), Fault(body="hang"), Fault(body="drip"), Fault(503, after="3")])
def test_a_manifest_is_asked_for_again_too(
    host: Host, pauses: list[float], fetcher: Callable[..., Fetcher], fault: Fault
):
    host.faults["manifest.json"] = [fault] * 2
    assert open_shards(host.address, fetcher(longest=0.4)).counts == [4, 5, 6]
    assert host.requests("manifest.json") == 3
    assert len(pauses) == 2


def test_a_missing_manifest_is_one_line_at_once(host: Host, pauses: list[float], fetcher: Callable[..., Fetcher]):
    host.faults["manifest.json"] = [Fault(404)]
    with pytest.raises(FileNotFoundError) as caught:
        open_shards(f"https://me:secret@{host.address.removeprefix('https://')}", fetcher())
    expected = f"`{host.address}/manifest.json` could not be read in 1 attempt (HTTP Error 404: Not Found). "
    assert str(caught.value) == expected + "Check the address."
    assert pauses == []


def run(place: str, fetcher: Fetcher, report: Path, **settings: Any) -> tuple[ShardLoader, list[int]]:
    """Sample ids of an epoch of the real loader, ids at whose places others were put left out."""
    settings = {"batches": 15, "ceiling": 1.0, "report": report} | settings
    own = make_loader(place, SquareImage(8), 1, rank=0, world_size=1, fetcher=fetcher, **settings)
    return own, [int(batch["sample_id"]) for batch in own]


@pytest.mark.parametrize("faults", [[Fault(503)] * 99, [Fault(404)], [Fault(body="half")] * 99])
def test_a_dead_shard_is_said_once_without_secrets_counted_and_left_out(
    host: Host, pauses: list[float], fetcher: Callable[..., Fetcher], tmp_path: Path,
    caplog: pytest.LogCaptureFixture, faults: list[Fault],
):  # fmt: skip
    host.faults[NAME] = [*faults]
    place = f"https://me:secret@{host.address.removeprefix('https://')}?token=secret"
    with caplog.at_level(logging.DEBUG):
        own, ids = run(place, fetcher(attempts=3), tmp_path / "report.jsonl")
        own, ids = run(place, fetcher(attempts=3), tmp_path / "report.jsonl")  # and after a restart
    assert set(ids) == set(range(15)) - LOST
    assert len(ids) == 15, "the run goes on, with batches of full size"
    assert own.skips.counts == {UNREACHABLE: 5}
    assert (own.skips.seen, own.skips.skipped) == (15, 5)
    assert own.skips.names == {f"{host.address}/{NAME}": UNREACHABLE}
    assert host.requests() == (1 if faults == [Fault(404)] else 3), "not once for each sample, nor for each start"
    assert len(pauses) == host.requests() - 1
    given_up = [record.getMessage() for record in caplog.records if "given up" in record.getMessage()]
    assert len(given_up) == 1
    assert given_up[0].startswith(f"`{host.address}/{NAME}` could not be fetched (")
    named = [json.loads(line)["name"] for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert named == [f"{host.address}/{NAME}"]
    assert "secret" not in caplog.text + (tmp_path / "report.jsonl").read_text()


@pytest.mark.filterwarnings("ignore:This process.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("fault", [Fault(503), Fault(404)])
def test_several_workers_ask_for_a_dead_shard_as_often_as_one(
    host: Host, fetcher: Callable[..., Fetcher], tmp_path: Path, fault: Fault
):
    host.faults[NAME] = [fault] * 99
    own, ids = run(
        host.address, fetcher(attempts=3, back_off=0.01), tmp_path / "report.jsonl", num_workers=2, start_method="fork"
    )
    own.close()
    assert set(ids) == set(range(15)) - LOST
    assert own.skips.counts == {UNREACHABLE: 5}
    assert host.requests() == (1 if fault.code == 404 else 3)
    assert (host.requests("00000.tar"), host.requests("00002.tar")) == (1, 1)


def test_a_dead_server_is_insisted_on_once_not_for_every_shard(
    host: Host, pauses: list[float], fetcher: Callable[..., Fetcher]
):
    for name in ("00000.tar", NAME):
        host.faults[name] = [Fault(503)] * 99
    own, shards = fetcher(attempts=4), read_manifest(host.folder).shards
    found = [own.fetch(f"{host.address}/{shard.name}", shard) is not None for shard in shards]
    assert found == [False, False, True], "it is asked for every shard, and what it has is taken"
    assert [host.requests(shard.name) for shard in shards] == [4, 1, 1]
    host.faults["00002.tar"] = [Fault(503)] * 99
    (own.folder / next(path.name for path in own.folder.glob("*00002.tar"))).unlink()
    assert own.fetch(f"{host.address}/00002.tar", shards[2]) is None
    assert host.requests("00002.tar") == 1 + 4, "it answered since"


@pytest.mark.parametrize("fault", [Fault(404), Fault(429), Fault(body="half")])
def test_trouble_with_one_shard_says_nothing_about_its_server(
    host: Host, pauses: list[float], fetcher: Callable[..., Fetcher], fault: Fault
):
    host.faults["00000.tar"], host.faults[NAME] = [fault] * 5, [Fault(503)]
    own, shards = fetcher(), read_manifest(host.folder).shards
    found = [own.fetch(f"{host.address}/{shard.name}", shard) is not None for shard in shards]
    assert found == [False, True, True]


def test_a_shard_that_comes_back_is_read_after_a_while(
    host: Host, pauses: list[float], fetcher: Callable[..., Fetcher], tmp_path: Path
):
    host.faults[NAME] = [Fault(503)] * 5
    own, ids = run(host.address, fetcher(), tmp_path / "report.jsonl")
    assert own.skips.counts == {UNREACHABLE: 5}
    own, ids = run(host.address, fetcher(patience=1e-9), tmp_path / "report.jsonl")
    assert sorted(ids) == list(range(15))
    assert not own.skips.counts


def test_a_login_is_sent_and_not_passed_on_and_a_token_goes_with_every_file(
    host: Host, fetcher: Callable[..., Fetcher], tmp_path: Path
):
    host.faults[NAME] = [Fault(302, target=f"http://127.0.0.1:{host.server.server_port}/elsewhere/{NAME}")]
    place = f"https://me:se%40cret@{host.address.removeprefix('https://')}?token=1%2F2"
    _, ids = run(place, fetcher(), tmp_path / "report.jsonl")
    assert sorted(ids) == list(range(15))
    login = "Basic " + base64.b64encode(b"me:se@cret").decode()
    sent = {headers["path"]: headers.get("Authorization") for headers in host.headers}
    assert sent.pop(f"/elsewhere/{NAME}") is None
    assert sent == dict.fromkeys(
        [f"/shards/{name}?token=1%2F2" for name in ("manifest.json", "00000.tar", NAME, "00002.tar")], login
    )
