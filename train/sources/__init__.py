"""Where training samples come from. Configurations name the classes that are listed here."""

from train.sources.shard_data import ShardPictures
from train.sources.stage_data import StageData
from train.sources.world_conditions import WorldConditions
from train.sources.world_data import WorldLatents, WorldPictures

__all__ = ["ShardPictures", "StageData", "WorldConditions", "WorldLatents", "WorldPictures"]
