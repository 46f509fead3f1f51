"""Where a base, an encoder or another part comes from: this disk, or a repository on the Hub that is really there.

Light to import, so that a command answers a mistyped name at once; the Hub's own client would retry for most of a
minute and then name another reason.
"""

import os
import re
from pathlib import Path
from typing import Any

_REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_SECONDS = 5.0  # to wait for the Hub's answer


def is_local(source: str | os.PathLike[str]) -> bool:
    """Say whether a name means this disk: it is there, or it looks like a path, or like a file of weights.

    Args:
        source: A path, or `owner/name` of a repository. `models/sd15` is a path where there is a folder `models`.
    """
    name = os.fspath(source)
    is_name = _REPOSITORY.fullmatch(name) is not None and not name.lower().endswith(_FILES)
    return not isinstance(source, str) or not is_name or Path(name).exists() or Path(name).parent.is_dir()


def saved_together(first: str) -> list[str]:
    """A folder of a network, and those beside it that diffusers saved with it as one list: `first_1` and so on."""
    found = [first.rstrip("/")]
    # A `MultiAdapter` counts on from the last name: its third is `first_1_2`.
    while more := [name for name in (found[0], found[-1]) if Path(f"{name}_{len(found)}", "config.json").is_file()]:
        found.append(f"{more[0]}_{len(found)}")
    return found


def check_source(name: str, source: str | os.PathLike[str], **hub: Any) -> None:
    """Refuse a source that is not there, within seconds and with the true reason.

    Args:
        name: What to call it, such as "base" or "--base".
        source: A path, or a repository on the Hub.
        hub: `token`, `cache_dir`, `local_files_only`; others are not looked at.

    Raises:
        FileNotFoundError: There is no such path; or no such repository, or it cannot be looked up.
    """
    if is_local(source):
        if not Path(source).exists():
            raise FileNotFoundError(
                f"`{name}`={source} does not exist; give a folder, a file, or a repository on the Hub (owner/name)."
            )
        return
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers

    cached = Path(hub.get("cache_dir") or constants.HF_HUB_CACHE) / f"models--{str(source).replace('/', '--')}"
    if (cached / "snapshots").is_dir():
        return
    reason = ""
    if constants.HF_HUB_OFFLINE or hub.get("local_files_only"):
        reason = "it is not in the cache, and HF_HUB_OFFLINE or local_files_only forbids to look it up"
    else:
        try:
            address = f"{constants.ENDPOINT}/api/models/{source}"
            answer = get_session().head(address, headers=build_hf_headers(token=hub.get("token")), timeout=_SECONDS)
            if answer.status_code in (401, 403, 404):
                reason = "there is none of this name, or it is private and needs a token (`hf auth login`)"
        except Exception as error:  # of one HTTP library or another, by the version of the Hub's client
            reason = f"{constants.ENDPOINT} cannot be reached ({str(error) or type(error).__name__})"
    if reason:
        raise FileNotFoundError(f"`{name}`={source} does not exist on this disk or on the Hub: {reason}.")
