import math

import pytest
import torch

from hyenadna import HyenaConfig, HyenaDNA
from hyenadna.pretrain.optimizer import adamw, cosine


def test_only_filter_networks_are_free_of_weight_decay():
    model = HyenaDNA(HyenaConfig(d_model=8, d_inner=16, filter_length=34, filter_order=4))
    optimizer = adamw(model, lr=1e-3, filter_lr=1e-4, weight_decay=0.1, betas=(0.9, 0.98))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert decay.keys() == dict(model.named_parameters()).keys()
    operator = model.backbone.layers[0].mixer
    network = {id(parameter) for parameter in operator.parameters()} - {
        id(parameter)
        for part in (operator.in_proj, operator.out_proj, operator.short_filter)
        for parameter in part.parameters()
    }
    # the gain of the direct path is no part of the network
    of_block_0 = {name: value for name, value in decay.items() if name.startswith("backbone.layers.0.")}
    free = {name for name, value in of_block_0.items() if value == 0.0}
    assert free | {"backbone.layers.0.mixer.filter_fn.bias"} == {names[key] for key in network}
    assert {value for name, value in decay.items() if name not in free and ".layers.1." not in name} == {0.1}
    assert all(group["betas"] == (0.9, 0.98) for group in optimizer.param_groups)
    assert {group["weight_decay"]: group["lr"] for group in optimizer.param_groups} == {0.0: 1e-4, 0.1: 1e-3}


def test_decay_shrinks_the_decayed_alone():
    torch.manual_seed(0)
    model = HyenaDNA(HyenaConfig(d_model=8, d_inner=16, filter_length=34, filter_order=4))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = adamw(model, lr=0.5, filter_lr=0.5, weight_decay=0.1, betas=(0.9, 0.98))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 if "implicit_filter" in name else 1 - 0.5 * 0.1
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


@pytest.mark.parametrize("steps", [1, 2, 7, 40, 1000])
@pytest.mark.parametrize(("warmup_share", "final_share"), [(0.05, 0.05), (0.0, 0.0), (0.5, 0.1)])
def test_rate_over_the_real_steps(steps, warmup_share, final_share):
    rise = max(1, round(warmup_share * steps))
    rates = [cosine(step, steps, warmup_share=warmup_share, final_share=final_share) for step in range(steps)]
    for step, rate in enumerate(rates):
        if step < rise:
            expected = (step + 1) / rise
        else:
            angle = (step - rise) / max(1, steps - 1 - rise) * math.pi
            expected = final_share + (1 - final_share) * math.cos(angle / 2) ** 2
        assert rate == pytest.approx(expected, abs=1e-12)
    assert max(rates) == 1.0 and min(rates) > (0 if final_share else -1e-12)
    if steps - rise > 1:
        assert rates[-1] == pytest.approx(final_share, abs=1e-12)
        assert all(a >= b for a, b in zip(rates[rise:], rates[rise + 1 :], strict=False))
