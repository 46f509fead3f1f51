import torch
from torch import nn

from train.conditioners.channels import Channels, ConditionPart


def test_columns_are_put_below_each_other_at_the_size_of_the_latents():
    mask, small = torch.rand(2, 1, 8, 8), torch.rand(2, 3, 2, 2)
    part = Channels(32, {"mask": 1, "small": 3})
    assert part.num_channels == 4
    below = part({"small": small, "mask": mask}, (2, 2))
    torch.testing.assert_close(below[:, :1], mask.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)))
    assert torch.equal(below[:, 1:], small)


def test_what_is_frozen_in_a_condition_stays_in_evaluation_mode(tmp_path):
    class HalfFrozen(ConditionPart):
        frozen_names = ("frozen",)

        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.free = nn.Linear(1, 1), nn.Linear(1, 1)

    part = HalfFrozen().train()
    assert not part.frozen.training
    assert part.free.training
    assert Channels(8, {"mask": 1}).export(tmp_path) == {}
    assert not any(tmp_path.iterdir())
