"""What can be trained: one stage for each kind of model. Configurations name the classes that are listed here."""

from train.stages.autoencoder import AutoencoderStage
from train.stages.backbone import BackboneStage
from train.stages.diffusion import WorldDiffusionStage
from train.stages.seecoder import SeeCoderStage
from train.stages.stage import Stage

__all__ = ["AutoencoderStage", "BackboneStage", "SeeCoderStage", "Stage", "WorldDiffusionStage"]
