"""Which noise field a path evaluates for a branch of the guidance rule."""

from contextlib import nullcontext, suppress

import pytest
import torch

from seecoder.sampling.guidance import Branch
from seecoder.sampling.path import Patch, Path, changed


class Unchanged(Patch):
    """Leaves the network as it is."""

    def active(self, step, size):
        return nullcontext()


@pytest.mark.parametrize(
    ("path", "wanted", "evaluated"),
    [
        (Path(lambda step, picture: ()), Branch("positive"), Branch("positive")),
        (Path(lambda step, picture: ()), Branch("negative", "damping"), Branch("negative")),
        (
            Path(lambda step, picture: (), patches={"damping": [Unchanged()]}),
            Branch("negative", "damping"),
            Branch("negative", "damping"),
        ),
        (Path(lambda step, picture: (), unconditional=True), Branch("positive"), Branch("negative")),
    ],
)
def test_a_path_falls_back_on_what_it_has(path, wanted, evaluated) -> None:
    """To the main network where it has no such state, to the negative context where it sees no other."""
    assert path.branch_for(wanted) == evaluated


def test_a_patch_has_to_say_what_it_changes() -> None:
    with pytest.raises(TypeError, match="active"):
        Patch()


def test_a_changed_module_gets_the_very_objects_back_also_after_an_error() -> None:
    conv = torch.nn.Conv2d(2, 2, 3)
    weight, kernel = conv.weight, torch.nn.Parameter(torch.zeros(2, 2, 5, 5))
    with suppress(KeyError), changed(conv, weight=kernel, dilation=(2, 2)):
        assert conv.weight is kernel
        assert conv.dilation == (2, 2)
        raise KeyError
    assert conv.weight is weight
    assert conv.dilation == (1, 1)
