import pytest
import torch
from torch import nn

from train.settings import EmaSettings
from train.stages.ema import Ema


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_average_follows_its_closed_form():
    module = layer()
    ema = Ema(module.named_parameters(), EmaSettings(decay=0.9, warmup=False))
    start = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1)
    for _ in range(5):
        ema.update()
    assert torch.allclose(ema.averages["weight"], start + (1 - 0.9**5), atol=1e-6)


def test_warmup_rises_to_the_final_decay():
    ema = Ema(layer().named_parameters(), EmaSettings(decay=0.99))
    decays = []
    for _ in range(2000):
        decays.append(ema.decay())
        ema.updates += 1
    assert decays[0] == 0.1
    assert decays == sorted(decays)
    assert decays[-1] == 0.99


def test_applied_gives_the_weights_back_bit_for_bit():
    module = layer()
    ema = Ema(module.named_parameters(), EmaSettings())
    with torch.no_grad():
        module.weight.mul_(1.1)
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def fail_inside():
        with ema.applied():
            assert torch.equal(module.weight, ema.averages["weight"])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_state_goes_round_and_foreign_state_is_refused():
    module = layer()
    ema = Ema(module.named_parameters(), EmaSettings(decay=0.5, warmup=False))
    ema.update()
    with torch.no_grad():
        module.weight.add_(1)
    ema.update()
    other = Ema(layer().named_parameters(), EmaSettings())
    other.load_state_dict(ema.state_dict())
    assert other.updates == 2
    assert torch.equal(other.averages["weight"], ema.averages["weight"])
    with pytest.raises(ValueError, match="first"):
        Ema(nn.Linear(3, 2, bias=False).named_parameters(), EmaSettings()).load_state_dict(ema.state_dict())


def test_averages_are_float32_copies():
    module = layer().to(torch.bfloat16)
    ema = Ema(module.named_parameters(), EmaSettings())
    assert all(average.dtype == torch.float32 for average in ema.averages.values())
