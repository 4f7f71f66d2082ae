"""Optimiser, schedule and frozen layers: the shape of the learning rate, who decays, and who is trained."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bintally.config import ModelConfig, OptimConfig
from bintally.model import Counter, build_model
from bintally.stages import backbone_stages
from train.optim import (
    Schedule,
    build_optimizer,
    lr_share,
    set_train_mode,
    set_trained,
    trained_changes,
)


def config(**changes: Any) -> OptimConfig:  # noqa: ANN401  # fields by name
    return OptimConfig(**({"lr": 0.5, "global_batch_size": 8} | changes))


def build(backbone: str = "small_cnn") -> Counter:
    torch.manual_seed(0)
    return build_model(ModelConfig(backbone=backbone), num_classes=6)


def schedule_of(optim: OptimConfig, *, max_epochs: int = 10) -> tuple[Schedule, Any]:
    """A schedule, and the first group of its optimiser."""
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=optim.lr)
    return Schedule(optimizer, optim, max_epochs), optimizer.param_groups[0]


def rates(num_steps: int, optim: OptimConfig, *, steps_per_epoch: int = 10) -> list[float]:
    """The learning rate of each step of a training, and of one after the last."""
    schedule, group = schedule_of(optim, max_epochs=num_steps // steps_per_epoch)
    seen = []
    for step in range(num_steps + 1):
        schedule.begin_step(step / steps_per_epoch, (step + 1) / steps_per_epoch)
        seen.append(group["lr"])
    return seen


# Schedules that go by how far the training is


def test_the_rate_rises_linearly_to_its_peak_and_falls_to_zero() -> None:
    seen = rates(100, config())
    assert seen[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert max(seen) == pytest.approx(0.5)
    assert all(after < before for before, after in itertools.pairwise(seen[10:]))
    assert seen[-1] == pytest.approx(0, abs=1e-9)


def test_the_fall_is_a_cosine() -> None:
    assert lr_share(5.5, 5.6, config(), 10) == pytest.approx(0.5)
    assert lr_share(2.5, 2.6, config(), 10) == pytest.approx((2 + 3**0.5) / 4)


def test_no_step_of_a_training_is_wasted_at_rate_zero() -> None:
    assert min(rates(20, config())[:-1]) > 0


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert rates(10, config(warmup_fraction=0.0))[0] == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["cosine", "step", "plateau", "constant"])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_shortest_trainings_have_a_rate(num_steps: int, schedule: str) -> None:
    seen = rates(num_steps, config(schedule=schedule), steps_per_epoch=1)
    assert all(0 < rate <= 0.5 for rate in seen[:num_steps])


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_fewer_and_larger_steps_have_the_rates_of_the_same_places(schedule: str) -> None:
    """As when a third of the ids is dropped: each batch reaches further then, and the training ends where it would."""
    optim = config(schedule=schedule, step_epochs=3)
    fine, coarse = rates(300, optim, steps_per_epoch=30), rates(100, optim, steps_per_epoch=10)
    assert coarse[10:] == pytest.approx(fine[30::3])
    assert coarse[:10] == pytest.approx(fine[2:30:3])


def test_the_step_schedule_falls_at_the_end_of_every_so_many_epochs() -> None:
    seen = rates(100, config(schedule="step", step_epochs=3, warmup_fraction=0.0))
    assert seen[:100] == pytest.approx([0.5] * 30 + [0.05] * 30 + [0.005] * 30 + [0.0005] * 10)


@pytest.mark.parametrize("schedule", ["step", "plateau", "constant"])
def test_every_schedule_warms_up(schedule: str) -> None:
    assert rates(100, config(schedule=schedule))[:12] == pytest.approx([0.05 * min(n, 10) for n in range(1, 13)])


def test_the_constant_schedule_stays() -> None:
    assert rates(100, config(schedule="constant"))[10:] == pytest.approx([0.5] * 91)


# Plateau


def plateau(**changes: Any) -> OptimConfig:  # noqa: ANN401  # fields by name
    return config(**({"schedule": "plateau", "step_epochs": 2, "warmup_fraction": 0.0} | changes))


def test_a_plateau_lowers_the_rate_and_an_improvement_does_not() -> None:
    schedule, group = schedule_of(plateau())
    seen = []
    for epoch, val_nll in enumerate((1.5, 1.4, 1.45, 1.3, 1.31, 1.3, 1.29, 1.4, 1.4), start=1):
        schedule.end_epoch(val_nll)
        schedule.begin_step(float(epoch), epoch + 1.0)
        seen.append(group["lr"])
    assert seen == pytest.approx([0.5] * 5 + [0.05] * 3 + [0.005])


def test_after_a_fall_the_wait_begins_anew() -> None:
    schedule, group = schedule_of(plateau())
    seen = []
    for epoch in range(1, 7):
        schedule.end_epoch(1.0)
        schedule.begin_step(float(epoch), epoch + 1.0)
        seen.append(group["lr"])
    assert seen == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005, 0.005])


def test_a_figure_that_is_no_number_is_no_improvement() -> None:
    schedule, group = schedule_of(plateau())
    for _ in range(2):
        schedule.end_epoch(float("nan"))
    schedule.begin_step(2.0, 3.0)
    assert group["lr"] == pytest.approx(0.05)
    schedule.end_epoch(1.0)
    schedule.end_epoch(0.9)
    schedule.begin_step(4.0, 5.0)
    assert group["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("kind", ["cosine", "step", "constant"])
def test_other_schedules_do_not_heed_the_figures(kind: str) -> None:
    schedule, group = schedule_of(config(schedule=kind, step_epochs=1))
    schedule.begin_step(5.0, 6.0)
    before = group["lr"]
    for _ in range(9):
        schedule.end_epoch(2.0)
    schedule.begin_step(5.0, 6.0)
    assert group["lr"] == before


@pytest.mark.parametrize("kind", ["cosine", "step", "plateau", "constant"])
def test_a_restarted_training_goes_on_where_it_was(kind: str) -> None:
    optim = config(schedule=kind, step_epochs=2)
    whole, whole_group = schedule_of(optim)
    for val_nll in [1.0, 1.1, 1.2, 1.3, 0.9]:
        whole.end_epoch(val_nll)
    again, again_group = schedule_of(optim)
    again.load_state_dict(whole.state_dict())
    for epoch in range(5, 10):
        for one in (whole, again):
            one.begin_step(float(epoch), epoch + 1.0)
            one.end_epoch(1.0)
        assert again_group["lr"] == whole_group["lr"]


# Optimiser


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet18"])
def test_biases_and_norms_do_not_decay_and_nothing_is_forgotten(backbone: str) -> None:
    model = build(backbone)
    decaying, free = build_optimizer(model, config(weight_decay=0.3)).param_groups
    assert (decaying["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    norms = [one for one in model.modules() if isinstance(one, nn.GroupNorm | nn.BatchNorm2d)]
    exempt = {id(p) for one in norms for p in one.parameters()}
    exempt |= {id(p) for name, p in model.named_parameters() if name.endswith(".bias")}
    assert {id(p) for p in free["params"]} == exempt
    assert {id(p) for p in decaying["params"]} == {id(p) for p in model.parameters()} - exempt


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_decay_shrinks_weights_and_leaves_biases(optimizer: str) -> None:
    model = build()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, config(lr=0.1, weight_decay=0.5, optimizer=optimizer)).step()
    head = backbone_stages(model)[-1]
    assert head[0].detach().flatten().tolist() == pytest.approx([0.95 if optimizer == "adamw" else 0.905] * 6 * 192)
    assert head[1].tolist() == [1] * 6


def test_sgd_has_nesterov_momentum() -> None:
    optimizer = build_optimizer(build(), config(optimizer="sgd"))
    assert isinstance(optimizer, torch.optim.SGD)
    assert all((group["momentum"], group["nesterov"]) == (0.9, True) for group in optimizer.param_groups)


def test_each_stage_learns_slower_than_the_one_behind_it() -> None:
    model = build("resnet18")
    optimizer = build_optimizer(model, config(layer_decay=0.8))
    rate_of = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    stages = backbone_stages(model)
    for depth, stage in enumerate(reversed(stages)):
        assert [rate_of[id(one)] for one in stage] == pytest.approx([0.5 * 0.8**depth] * len(stage))
    assert len(rate_of) == len(list(model.parameters()))
    assert optimizer.param_groups[-1]["lr"] == 0.5, "the last group is the head's, whose rate is the one to show"


def test_the_schedule_keeps_the_shares_between_stages() -> None:
    optimizer = build_optimizer(build(), config(layer_decay=0.5))
    peaks = [group["lr"] for group in optimizer.param_groups]
    Schedule(optimizer, config(layer_decay=0.5), max_epochs=10).begin_step(5.5, 5.6)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([peak / 2 for peak in peaks])


# Which layers are trained


def trained_names(model: Counter) -> set[str]:
    return {name for name, one in model.named_parameters() if one.requires_grad}


def test_all_layers_are_trained_unless_told_otherwise() -> None:
    model = build()
    set_trained(model, config(trained="head"), epoch=1)
    set_trained(model, config(), epoch=1)
    assert trained_names(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("epoch", [1, 2, 30])
def test_the_head_alone(epoch: int) -> None:
    model = build()
    set_trained(model, config(trained="head"), epoch)
    assert trained_names(model) == {"backbone.head.weight", "backbone.head.bias"}


def test_stages_thaw_from_the_back() -> None:
    model = build("resnet18")
    optim = config(trained="staged", stage_epochs=2)
    seen = []
    for epoch in range(1, 14):
        set_trained(model, optim, epoch)
        seen.append(sorted({name.split(".")[1] for name in trained_names(model)}))
    layers = ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    expected = [sorted(layers[-num:] + ["bn1"] * (num == 6)) for num in (1, 2, 3, 4, 5, 6)]
    assert seen == [*(one for one in expected for _ in range(2)), expected[-1]]


def test_changes_are_told_of_the_epochs_that_bring_them() -> None:
    model = build("resnet18")  # six stages
    staged = config(trained="staged", stage_epochs=2)
    assert [n for n in range(1, 20) if trained_changes(model, staged, n)] == [3, 5, 7, 9, 11]
    for trained in ("all", "head"):
        assert not any(trained_changes(model, config(trained=trained), n) for n in range(1, 20))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_layers_stay_as_they_are_and_thawed_ones_learn(optimizer: str) -> None:
    model = build("resnet18")
    optim = config(trained="staged", optimizer=optimizer, lr=0.01, weight_decay=0.5)
    fitted = build_optimizer(model, optim)
    photos = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    for epoch, moved in [(1, {"fc"}), (2, {"fc", "layer4"})]:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        set_trained(model, optim, epoch)
        set_train_mode(model)
        fitted.zero_grad(set_to_none=True)
        F.cross_entropy(model(photos), torch.tensor([0, 1, 2, 3])).backward()
        fitted.step()
        after = model.state_dict()
        assert {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])} == moved


def test_what_is_frozen_is_in_evaluation_mode_and_nothing_else() -> None:
    model = build("efficientnet_b0")
    set_trained(model, config(trained="staged"), epoch=2)
    set_train_mode(model)
    norms = {name: one for name, one in model.named_modules() if isinstance(one, nn.BatchNorm2d)}
    training = {name.split(".")[2] for name, one in norms.items() if one.training}
    assert training == {"6", "7", "8"}
    assert model.backbone.get_submodule("classifier.0").training, "the dropout before a trained head drops"
    set_trained(model, config(), epoch=1)
    set_train_mode(model.eval())
    assert all(one.training for one in model.modules())
