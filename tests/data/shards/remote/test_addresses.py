"""Addresses are joined with names, and never shown with what they hold of passwords and tokens."""

from pathlib import Path

import pytest

from data.shards.remote.addresses import file_address, folder_address, redacted


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
