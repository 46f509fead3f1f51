"""Addresses are joined with names, and never shown with what they hold of passwords and tokens."""

import urllib.request
from pathlib import Path

import pytest

from data.shards.remote.addresses import file_address, folder_address, open_url, redacted


@pytest.mark.parametrize(
    ("address", "folder", "file"),
    [
        ("https://host/a", "https://host/a", "https://host/a/0.tar"),
        ("https://host/a/", "https://host/a/", "https://host/a/0.tar"),
        ("https://host", "https://host", "https://host/0.tar"),
        ("https://host/a/manifest.json", "https://host/a", "https://host/a/0.tar"),
        ("https://me:pw@host:1/a/manifest.json?sig=1%2F2", "https://me:pw@host:1/a?sig=1%2F2", None),
        ("https://host/a?sig=1%2F2", "https://host/a?sig=1%2F2", "https://host/a/0.tar?sig=1%2F2"),
    ],
)
def test_files_lie_below_their_folder(address: str, folder: str, file: str | None):
    assert folder_address(address, "manifest.json") == folder
    assert file_address(folder, "0.tar") == (file or "https://me:pw@host:1/a/0.tar?sig=1%2F2")


def test_names_are_quoted_for_servers_and_left_alone_in_stores():
    assert file_address("https://h/a%20b?sig=1", "é #1 (2).tar") == "https://h/a%20b/%C3%A9%20%231%20(2).tar?sig=1"
    assert file_address("s3://b/a", "é #1 (2).tar") == "s3://b/a/é #1 (2).tar"


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("https://h/my data/é/0.tar?q=1", "/my%20data/%C3%A9/0.tar?q=1"),
        ("https://h/a%20b/%231.tar", "/a%20b/%231.tar"),
        ("https://h/a(1)/b@c,d=e;f:g.tar", "/a(1)/b@c,d=e;f:g.tar"),
    ],
)
def test_a_server_is_asked_for_what_a_user_typed(address: str, asked: str, monkeypatch: pytest.MonkeyPatch):
    requests: list[urllib.request.Request] = []
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", lambda _, request, timeout: requests.append(request))
    open_url(address, 1.0)
    assert requests[0].selector == asked


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://me:pass@word@host:8443/a/0.tar?token=secret#secret", "https://host:8443/a/0.tar"),
        ("https://token@host/a", "https://host/a"),
        (Path("/data/a@b?c.tar"), "/data/a@b?c.tar"),
        ("https://[me:secret@x/y", "https://x/y"),
        ("[https://a:b@x/y?z,https://c:d@v/w]", "[https://x/y"),
        ("https://a:b@x/y,s3://c:d@v/w#t", "https://x/y,s3://v/w"),
        ("hf://datasets/owner/name@main/0.tar", "hf://datasets/owner/name@main/0.tar"),
        ("data/a@b?c.tar", "data/a@b?c.tar"),
        (Path("https://me:secret@host/a"), "https:/host/a"),
        ("flags:/data/a@b/0.tar", "flags:/data/a@b/0.tar"),
        ("401 for Authorization: Bearer abc.DEF-12345= again", "401 for Authorization: Bearer ... again"),
        ("GET /a?X-Goog-Signature=0123abcd&size=3", "GET /a?X-Goog-Signature=...&size=3"),
        ("`hf_AbCdEfGhIjKlMnOpQrStUv0123` has ended", "`...` has ended"),
        ("basic blocks of hf_hub_download; token_similarity=0.25", None),
    ],
)
def test_only_what_is_no_secret_is_shown(location: str | Path, expected: str | None):
    assert redacted(location) == (location if expected is None else expected)
