"""Which noise field a path evaluates for a branch of the guidance rule."""

from contextlib import nullcontext

import pytest
import torch

from seecoder.sampling.guidance import Branch
from seecoder.sampling.path import Patch, Path, uncompiled


class Unchanged(Patch):
    """Leaves the network as it is."""

    def active(self, step, size):
        return nullcontext()


@pytest.mark.parametrize(
    ("path", "wanted", "evaluated"),
    [
        (Path(lambda step, image: ()), Branch("positive"), Branch("positive")),
        (Path(lambda step, image: ()), Branch("negative", "damping"), Branch("negative")),
        (
            Path(lambda step, image: (), patches={"damping": [Unchanged()]}),
            Branch("negative", "damping"),
            Branch("negative", "damping"),
        ),
        (Path(lambda step, image: (), unconditional=True), Branch("positive"), Branch("negative")),
    ],
)
def test_a_path_falls_back_on_what_it_has(path, wanted, evaluated) -> None:
    """To the main network where it has no such state, to the negative context where it sees no other."""
    assert path.branch_for(wanted) == evaluated


def test_a_patch_has_to_say_what_it_changes() -> None:
    with pytest.raises(TypeError, match="active"):
        Patch()


def test_hooks_that_come_after_compiling_act_while_networks_run_uncompiled() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    compiled = torch.compile(network, backend="eager")
    values = torch.ones(1, 2)
    plain = compiled(values)
    handle = network[0].register_forward_hook(lambda module, inputs, output: output + 1.0)
    with uncompiled():
        torch.testing.assert_close(compiled(values), plain + 1.0)
    handle.remove()
    torch.testing.assert_close(compiled(values), plain)
