"""Class paths of configurations that were written before stages and sources had folders of their own."""

import re
from typing import Any

from jsonargparse import set_loader
from yaml import YAMLError

from data.hidden_secrets import learn_secrets
from data.unique_keys import load_unique, refuse_double_keys

_OLD_PATH = re.compile(
    r"(?<![\w.])train\.(?:(autoencoder|backbone|diffusion|seecoder)|latents|shard_data|world_data)\.(\w+)(?![\w.])"
)

YAML_MODE = "yaml_of_any_age"  # a name for jsonargparse's `parser_mode`


def accept_old_class_paths() -> None:
    """Teach jsonargparse the mode `YAML_MODE`: YAML in which old class paths count as the new ones.

    What was renamed is said once for each text that is read.
    """
    refuse_double_keys()

    def load(text: str) -> Any:
        learn_secrets(text)
        for old, new in {found[0]: _new_path(found) for found in _OLD_PATH.finditer(text)}.items():
            print(f"note: the class {old} of the configuration is {new} now", flush=True)
        return load_unique(_OLD_PATH.sub(_new_path, text))

    set_loader(YAML_MODE, load, exceptions=(YAMLError,))


def _new_path(found: re.Match[str]) -> str:
    return f"train.{'stages' if found[1] else 'sources'}.{found[2]}"
