"""AdamW with the groups of the HyenaDNA paper, and a cosine over the run's real number of steps."""

import math

import torch

from hyenadna.model.language_model import HyenaDNA


def adamw(
    model: HyenaDNA, *, lr: float, filter_lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW over two groups: the filter networks, without weight decay, and everything else with it.

    Nguyen et al. 2023, table A.1 (weight decay 0 for the Hyena filters). Departs from it: the filter networks may have
    a learning rate of their own, because rates at which the rest learns fastest make their sines jump.
    """
    filters: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (filters if "implicit_filter" in name else others).append(parameter)
    groups = [
        {"params": filters, "lr": filter_lr, "initial_lr": filter_lr, "weight_decay": 0.0},
        {"params": others, "lr": lr, "initial_lr": lr, "weight_decay": weight_decay},
    ]
    return torch.optim.AdamW(groups, betas=betas)


def cosine(step: int, steps: int, *, warmup_share: float, final_share: float) -> float:
    """The learning rate of a step as a share of the highest: a linear rise, then half a cosine down to `final_share`.

    Examples
    --------
    >>> [round(cosine(step, 100, warmup_share=0.1, final_share=0.1), 3) for step in (0, 9, 10, 99)]
    [0.1, 1.0, 1.0, 0.1]
    """
    rise = max(1, round(warmup_share * steps))
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, steps - 1 - rise)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
