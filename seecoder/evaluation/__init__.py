"""How good pictures are, in numbers: as a set, against what they were made from, by themselves."""

from seecoder.evaluation.feature_networks import Network, map_network, open_network
from seecoder.evaluation.pictures import find_pictures
from seecoder.evaluation.scoring import evaluate

__all__ = ["Network", "evaluate", "find_pictures", "map_network", "open_network"]
