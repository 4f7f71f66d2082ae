"""Optimiser and schedule: the shape of the learning rate, and who decays."""

import itertools

import pytest
import torch
from torch import nn

from bintally.config import ModelConfig, OptimConfig
from bintally.model import build_model
from train.optim import build_optimizer, build_schedule, lr_share


def config(*, lr: float = 0.5, weight_decay: float = 0.05, warmup_fraction: float = 0.1) -> OptimConfig:
    return OptimConfig(lr=lr, global_batch_size=8, weight_decay=weight_decay, warmup_fraction=warmup_fraction)


def rates(num_steps: int, optim: OptimConfig) -> list[float]:
    """The learning rate of each step, as a training sees it, and the one after the last."""
    optimizer = build_optimizer(nn.Linear(2, 2), optim)
    schedule = build_schedule(optimizer, optim, num_steps=num_steps)
    seen = []
    for _ in range(num_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


def test_the_rate_rises_linearly_to_its_peak_and_falls_to_zero() -> None:
    seen = rates(100, config())
    assert seen[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert max(seen) == pytest.approx(0.5)
    assert all(after < before for before, after in itertools.pairwise(seen[10:]))
    assert seen[-1] == pytest.approx(0, abs=1e-9)


def test_the_fall_is_a_cosine() -> None:
    assert lr_share(55, num_warmup=10, num_steps=100) == pytest.approx(0.5)
    assert lr_share(25, num_warmup=10, num_steps=100) == pytest.approx((2 + 3**0.5) / 4)


def test_no_step_of_a_training_is_wasted_at_rate_zero() -> None:
    assert min(rates(20, config())[:-1]) > 0


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert rates(10, config(warmup_fraction=0.0))[0] == pytest.approx(0.5)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_shortest_trainings_have_a_rate(num_steps: int) -> None:
    assert all(0 < rate <= 0.5 for rate in rates(num_steps, config())[:num_steps])


def test_steps_after_the_last_stay_at_zero() -> None:
    """With uneven shards a worker may step a few times more than was planned."""
    assert lr_share(130, num_warmup=10, num_steps=100) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet18"])
def test_biases_and_norms_do_not_decay_and_nothing_is_forgotten(backbone: str) -> None:
    model = build_model(ModelConfig(backbone=backbone), num_classes=6)
    decaying, free = build_optimizer(model, config(weight_decay=0.3)).param_groups
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    norms = [one for one in model.modules() if isinstance(one, nn.GroupNorm | nn.BatchNorm2d)]
    exempt = {id(p) for one in norms for p in one.parameters()}
    exempt |= {id(p) for name, p in model.named_parameters() if name.endswith(".bias")}
    assert {id(p) for p in free["params"]} == exempt
    assert {id(p) for p in decaying["params"]} == {id(p) for p in model.parameters()} - exempt


def test_frozen_parameters_are_left_out() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    decaying, free = build_optimizer(layer, config()).param_groups
    assert decaying["params"] == []
    assert len(free["params"]) == 1


def test_decay_shrinks_weights_and_leaves_biases() -> None:
    layer = nn.Linear(3, 3)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    optimizer = build_optimizer(layer, config(lr=0.1, weight_decay=0.5))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert layer.weight.detach().flatten().tolist() == pytest.approx([0.95] * 9)
    assert layer.bias.tolist() == [1, 1, 1]
