"""Class paths of configurations that were written before stages and sources had folders of their own."""

import re
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

_OLD_PATH = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, _NEW_PATHS))})(?![\w.])")

YAML_MODE = "yaml_of_any_age"  # a name for jsonargparse's `parser_mode`


def accept_old_class_paths() -> None:
    """Teach jsonargparse the mode `YAML_MODE`: YAML in which old class paths count as the new ones.

    What was renamed is said once for each text that is read.
    """
    load_yaml = get_loader("yaml")

    def load(text: str) -> Any:
        for old in dict.fromkeys(_OLD_PATH.findall(text)):
            print(f"note: the class {old} of the configuration is {_NEW_PATHS[old]} now", flush=True)
        return load_yaml(_OLD_PATH.sub(lambda found: _NEW_PATHS[found[0]], text))

    set_loader(YAML_MODE, load, exceptions=(YAMLError,))
