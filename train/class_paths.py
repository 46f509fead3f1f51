"""Class paths of configurations that were written before stages and sources had folders of their own."""

import re
from functools import lru_cache

from jsonargparse import set_loader
from yaml import YAMLError

from data.hidden_secrets import learn_secrets
from data.unique_keys import load_unique

_OLD_PATH = re.compile(
    r"(?<![\w.])train\.(?:(autoencoder|backbone|diffusion|seecoder)|latents|shard_data|world_data)\.(\w+)(?![\w.])"
)


def accept_old_class_paths() -> None:
    """Teach jsonargparse YAML in which old class paths count as the new ones; what was renamed is said once a text."""
    set_loader("yaml", lambda text: load_unique(_with_new_paths(text)), exceptions=(YAMLError,))


@lru_cache  # a configuration is read twice: first what needs no imports
def _with_new_paths(text: str) -> str:
    learn_secrets(text)
    for old, new in {found[0]: _new_path(found) for found in _OLD_PATH.finditer(text)}.items():
        print(f"note: the class {old} of the configuration is {new} now", flush=True)
    return _OLD_PATH.sub(_new_path, text)


def _new_path(found: re.Match[str]) -> str:
    return f"train.{'stages' if found[1] else 'sources'}.{found[2]}"
