"""Addresses of shards: opened, joined with names, and shown without what they may hold of passwords and tokens."""

import base64
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import fsspec

SCHEME = "https"
STORES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}  # by scheme, the package that fsspec opens it with
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only: a server must not lead us to another scheme."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme.lower() != SCHEME:
            raise urllib.error.URLError(f"redirected to {redacted(newurl)!r}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(url: str, timeout: float) -> Any:
    """Open an https URL or a file of a store; refuse anything else, redirects included.

    `user:password@` before the host is sent as a basic authorization, and not to where a redirect leads. For stores
    the login is what their own tools use: variables of the environment, or files in the home folder.
    """
    parts = urlsplit(url)
    if parts.scheme.lower() in STORES:
        return _open_in_store(url, STORES[parts.scheme.lower()])
    if parts.scheme.lower() != SCHEME:
        raise urllib.error.URLError(f"{redacted(url)!r} is not https")
    login, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)))
    if login:
        login = login if ":" in login else f"{login}:"  # RFC 7617 wants the colon also where there is no password
        secret = base64.b64encode(unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return urllib.request.build_opener(_HttpsOnly()).open(request, timeout=timeout)


def _open_in_store(url: str, package: str) -> Any:
    try:
        return fsspec.open(url, "rb").open()
    except ImportError as error:
        raise ValueError(f"`{redacted(url)}` cannot be opened without {package}: `pip install {package}`.") from error
    except Exception as error:  # each store's library has its own
        raise error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}") from error


def file_address(address: str, name: str) -> str:
    """Address of a file in a folder; a query (an access token, say) goes with every file."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def folder_address(address: str, name: str) -> str:
    """Address of a folder, which may have been given as that of its file `name`."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=parts.path.removesuffix("/" + name)))


def redacted(location: str | Path) -> str:
    """A location for messages and reports: of an address without user, password, query and fragment."""
    if isinstance(location, Path) or "://" not in location:
        return str(location)
    try:
        parts = urlsplit(location)
    except ValueError:  # who knows what it holds
        return f"{location.partition('://')[0]}://..."
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def without_secrets(value: Any) -> Any:
    """A configuration for files that are kept and shown: its addresses without user, password, query and fragment."""
    if isinstance(value, Mapping):
        return {name: without_secrets(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(entry) for entry in value]
    return redacted(value) if isinstance(value, str) and _ADDRESS.match(value) else value
