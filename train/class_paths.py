"""Class paths of configurations that were written before stages and sources had folders of their own."""

from typing import Any

from jsonargparse import get_loader, set_loader
from yaml import YAMLError

_NEW_PATHS = {
    "train.autoencoder.AutoencoderStage": "train.stages.AutoencoderStage",
    "train.backbone.BackboneStage": "train.stages.BackboneStage",
    "train.diffusion.WorldDiffusionStage": "train.stages.WorldDiffusionStage",
    "train.latents.WorldLatents": "train.sources.WorldLatents",
    "train.seecoder.SeeCoderStage": "train.stages.SeeCoderStage",
    "train.shard_data.ShardPictures": "train.sources.ShardPictures",
    "train.world_data.WorldPictures": "train.sources.WorldPictures",
}

YAML_MODE = "yaml_of_any_age"  # a name for jsonargparse's `parser_mode`


def accept_old_class_paths() -> None:
    """Teach jsonargparse the mode `YAML_MODE`: YAML in which old class paths count as the new ones.

    What was renamed is said once for each text that is read.
    """
    load_yaml = get_loader("yaml")

    def load(text: str) -> Any:
        renamed: dict[str, str] = {}
        value = _with_new_paths(load_yaml(text), renamed)
        for old, new in renamed.items():
            print(f"note: the class {old} of the configuration is {new} now", flush=True)
        return value

    set_loader(YAML_MODE, load, exceptions=(YAMLError,))


def _with_new_paths(value: Any, renamed: dict[str, str]) -> Any:
    """The value with new class paths at any depth; `renamed` gets the old ones that were found, and their new names."""
    if isinstance(value, dict):
        return {name: _with_new_paths(part, renamed) for name, part in value.items()}
    if isinstance(value, str) and value in _NEW_PATHS:
        renamed[value] = _NEW_PATHS[value]
        return _NEW_PATHS[value]
    return value
