import types
from contextlib import suppress

import torch

from seecoder.replacing import replaced


def test_attributes_are_what_they_were_after_an_error():
    module, seen = types.SimpleNamespace(first=1, second=2), []
    with suppress(RuntimeError), replaced(module, first=10, second=20):
        seen += [module.first, module.second]
        raise RuntimeError
    assert seen == [10, 20]
    assert (module.first, module.second) == (1, 2)


def test_a_method_is_the_classs_again():
    layer = torch.nn.Linear(2, 2)
    with replaced(layer, forward=lambda inputs: "replaced"):
        assert layer(torch.zeros(1, 2)) == "replaced"
    assert "forward" not in vars(layer)
    assert layer(torch.zeros(1, 2)).shape == (1, 2)


def test_what_was_not_there_is_not_there_again():
    owner = types.SimpleNamespace()
    with replaced(owner, extra=1):
        assert owner.extra == 1
    assert not hasattr(owner, "extra")
