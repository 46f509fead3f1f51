"""Addresses of shards: opened, joined with names, and shown without what they may hold of passwords and tokens."""

import base64
import re
import urllib.error
import urllib.request
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import fsspec

SCHEME = "https"
_PLAIN = "!$&'()*+,;=:@~"  # stand for themselves in a path (RFC 3986, section 3.3)
STORES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}  # by scheme, the package that fsspec opens it with
# Scheme (a `Path` keeps one slash); left out before the host (a password may hold what ends a host); shown; left out
# behind it. Ends where the next begins.
ADDRESS = re.compile(
    r"(?i)([a-z][a-z0-9+.-]*://|\b(?:https?|s3|gs|hf):/)"
    r"([^/\s'\"<>]*@|[^/\s'\"<>@:]+:(?!//|\d+[/?#])[^\s'\"<>@]*@)?"
    r"((?:(?![a-z][a-z0-9+.-]*://)[^?#\s'\"`<>])*)((?:[?#][^\s'\"`<>]*)?)"
)
_TOKENS = re.compile(  # outside of addresses: of a header, of a query by itself, and Hugging Face's
    r"(?i)(\b(?:bearer|basic) +(?=\S*\d)|[?&][\w.-]*(?:token|sig|key|secret|credential|password)[\w.-]*=)"
    r"[^\s&'\"`<>,]{6,}|\bhf_[a-z0-9]{16,}"
)


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
    path = quote(parts.path, safe=f"/%{_PLAIN}")  # what a user typed: blanks, umlauts
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host, path=path)))
    if login:
        login = login if ":" in login else f"{login}:"  # RFC 7617 wants the colon also where there is no password
        secret = base64.b64encode(unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return urllib.request.build_opener(_HttpsOnly()).open(request, timeout=timeout)


def _open_in_store(url: str, package: str) -> Any:
    try:
        store, path = fsspec.url_to_fs(url)
        return store.open(path, "rb")
    except ImportError as error:
        raise ValueError(f"`{redacted(url)}` cannot be opened without {package}: `pip install {package}`.") from error
    except Exception as error:  # each store's library has its own
        raise error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}") from error


def file_address(address: str, name: str) -> str:
    """Address of a file in a folder; a query (an access token, say) goes with every file."""
    parts = urlsplit(address)
    name = quote(name, safe=_PLAIN) if parts.scheme.lower() == SCHEME else name  # stores take names as they are
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def folder_address(address: str, name: str) -> str:
    """Address of a folder, which may have been given as that of its file `name`."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=parts.path.removesuffix("/" + name)))


def redacted(text: str | Path) -> str:
    """A location, or a text that holds some, for messages: without user, password, query, fragment and known tokens."""
    return _TOKENS.sub(r"\1...", ADDRESS.sub(r"\1\3", str(text)))
