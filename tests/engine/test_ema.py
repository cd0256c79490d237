from __future__ import annotations

import torch
from torch import nn

from fastkd.engine.ema import Average


def make(decay: float, dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, Average]:
    layer = nn.Linear(3, 2).to(dtype)
    return layer, Average(dict(layer.named_parameters()), decay)


def test_average_is_the_recursion() -> None:
    layer, average = make(0.9)
    expected = layer.weight.detach().clone()
    for update in range(50):
        with torch.no_grad():
            layer.weight.add_(torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(update)))
        average.update()
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    torch.testing.assert_close(average.values["weight"], expected, rtol=1e-13, atol=1e-13)


def test_no_decay_follows_the_weights_exactly() -> None:
    layer, average = make(0.0, torch.float32)
    with torch.no_grad():
        layer.weight.mul_(1.2345)
    average.update()
    assert torch.equal(average.values["weight"], layer.weight)


def test_applied_swaps_and_restores_bitwise_even_after_an_error() -> None:
    layer, average = make(0.9)
    with torch.no_grad():
        layer.weight.add_(1.0)
    raw = layer.weight.detach().clone()
    try:
        with average.applied():
            assert torch.equal(layer.weight, average.values["weight"])
            assert not torch.equal(layer.weight, raw)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(layer.weight, raw)


def test_state_round_trip() -> None:
    layer, average = make(0.9)
    for _ in range(3):
        with torch.no_grad():
            layer.weight.add_(1.0)
        average.update()
    other = Average(dict(layer.named_parameters()), 0.9)
    other.load_state_dict(average.state_dict())
    average.update()
    other.update()
    assert torch.equal(average.values["weight"], other.values["weight"])
