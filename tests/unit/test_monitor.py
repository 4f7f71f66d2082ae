"""The monitor itself: what it measures is true, it costs next to nothing, and it leaves the network as it was."""

import json
import math
import mmap
import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from train.health_record import EpochHealth, read_epoch
from train.monitor import MAX_SAMPLES, Monitor
from train.phase_clock import PHASES, PhaseClock, summarize_durations
from train.tensor_stats import Activations, Stage, copy_weights, gradient_tensors, read, split_stages, update_tensors
from train.usage import MAX_POINTS, ProcessProbe, UsageSample, UsageSampler, private_bytes, summarize_usage

CPU = torch.device("cpu")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def steps_of(monitor: Monitor, model: nn.Module, num: int, device: torch.device = CPU) -> Iterator[Tensor]:
    """Plain training steps under the monitor; gives each loss before it is handed over."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in monitor.steps(torch.ones(5, 3, device=device) for _ in range(num)):
        loss = model(x).square().sum()
        optimizer.zero_grad()
        loss.backward()
        monitor.after_backward()
        optimizer.step()
        yield loss
        monitor.after_step(loss, len(x))


def summary_of(monitor: Monitor, epoch: int = 1) -> EpochHealth:
    return read_epoch(json.loads(json.dumps(monitor.epoch_summary(epoch), allow_nan=False)))


def test_phases_add_up_to_the_time_that_passed_and_inner_ones_stop_outer_ones() -> None:
    clock = PhaseClock(lambda: None)
    began = time.perf_counter()
    clock.reset()
    with clock.phase("wait"):
        time.sleep(0.02)
        with clock.phase("copy"):
            time.sleep(0.03)
        time.sleep(0.01)
    time.sleep(0.02)
    passed = clock.charge() - began
    assert sum(clock.totals.values()) == pytest.approx(passed, abs=1e-3)
    assert clock.totals["copy"] == pytest.approx(0.03, abs=0.02)
    assert 0.03 <= clock.totals["wait"] < 0.03 + 0.02
    assert clock.totals["other"] >= 0.02
    assert clock.longest_gap_s == pytest.approx(0.03, abs=0.02)
    assert clock.sampled == {}


def test_a_phase_ends_with_an_error_and_unknown_ones_are_refused() -> None:
    clock = PhaseClock(lambda: None)
    with pytest.raises(ZeroDivisionError), clock.phase("forward"):
        raise ZeroDivisionError
    assert clock.current == "other"
    with pytest.raises(AssertionError), clock.phase("lunch"):
        pass


def test_the_device_is_waited_for_in_sampled_steps_alone() -> None:
    waits: list[None] = []
    clock = PhaseClock(lambda: waits.append(None))
    with clock.phase("forward"):
        pass
    assert waits == []
    clock.synced = True
    with clock.phase("forward"):
        pass
    assert len(waits) == 2
    assert set(clock.sampled) == {"forward", "other"}


def test_an_epoch_is_summed_up_and_the_next_begins_anew() -> None:
    model = net()
    with Monitor(model, CPU, num_classes=3, every=20) as monitor:
        losses = [float(loss.detach()) for loss in steps_of(monitor, model, 25)]
        monitor.see_counts(np.array([0, 2, 2, -1]))
        with monitor.phase("validation"):
            assert list(monitor.alive("ab")) == ["a", "b"]
        first = summary_of(monitor)
        list(steps_of(monitor, model, 2))
        second = summary_of(monitor, 2)
    assert first.train_loss == pytest.approx(sum(losses) / 125, rel=1e-4)
    assert first.samples[0].loss == pytest.approx(losses[0] / 5, rel=1e-4)
    assert first.samples[-1].loss == pytest.approx(sum(losses[10:20]) / 50, rel=1e-4)  # since the one before
    assert [sample.step for sample in first.samples] == [*range(1, 11), 20]
    assert (first.first_step, first.last_step, second.first_step, second.last_step) == (1, 25, 26, 27)
    assert first.class_rows == [1, 0, 2]
    assert second.class_rows == [0, 0, 0]
    assert sum(first.phases.values()) == pytest.approx(first.wall_s)
    assert set(first.phases) <= set(PHASES)
    assert first.startup_s is not None
    assert second.startup_s is None
    assert second.samples == []


def test_only_sampled_steps_read_from_the_device() -> None:
    meta = torch.device("meta")  # its tensors have no values, so that reading one is an error
    model = net().to(meta)
    with Monitor(model, meta, num_classes=2, every=50, steps_done=10) as monitor:
        assert len(list(steps_of(monitor, model, 39, meta))) == 39
        with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
            list(steps_of(monitor, model, 1, meta))


def test_the_network_is_left_without_hooks_even_by_an_error() -> None:
    model = net()
    monitor = Monitor(model, CPU, num_classes=2)
    with monitor:
        batches = monitor.steps([torch.ones(5, 3)])
        next(batches)
        assert any(module._forward_hooks for module in model)  # noqa: SLF001  # nothing public tells
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model)  # noqa: SLF001


def test_without_activations_nothing_is_hooked() -> None:
    model = net()
    with Monitor(model, CPU, num_classes=2, activations=False) as monitor:
        list(steps_of(monitor, model, 3))
        samples = summary_of(monitor).samples
    assert [(sample.input_variance, sample.dead_share) for sample in samples] == [({}, {})] * 3
    assert samples[0].stages


def test_a_long_epoch_is_sampled_less_often() -> None:
    model = net()
    with Monitor(model, CPU, num_classes=2, every=1) as monitor:
        list(steps_of(monitor, model, 300))
        samples = summary_of(monitor).samples
    assert MAX_SAMPLES / 2 <= len(samples) <= MAX_SAMPLES
    assert [sample.step for sample in samples][:10] == list(range(1, 11))
    assert samples[-1].step > 250


def test_a_stage_that_is_released_later_is_seen_from_then_on() -> None:
    model = net()
    model[0].requires_grad_(False)
    with Monitor(model, CPU, num_classes=2, every=1) as monitor:
        list(steps_of(monitor, model, 2))
        model[0].requires_grad_(True)
        list(steps_of(monitor, model, 2))
        stages = [list(sample.stages) for sample in summary_of(monitor).samples]
    assert stages == [["2"], ["2"], ["0", "2"], ["0", "2"]]


def test_gradient_statistics_are_those_of_the_definition() -> None:
    model = nn.Sequential(nn.Linear(50, 40, bias=False), nn.Linear(40, 2))
    model(torch.randn(8, 50)).square().sum().backward()
    stages = split_stages(model)
    values = read({"gradient": gradient_tensors(stages)})["gradient"]
    gradient = model[0].weight.grad
    assert gradient is not None
    low, high = np.percentile(gradient.numpy(), (5, 95))
    expected = (gradient.abs().mean(), gradient.square().sum(), high - low, 0.0)
    assert values["0"] == pytest.approx([float(value) for value in expected], rel=1e-3)
    assert model[1].bias.grad is not None
    model[1].bias.grad[0] = math.nan
    assert read({"gradient": gradient_tensors(stages)})["gradient"]["1"][3] == 0.5  # one of two tensors


def test_update_ratio_is_that_of_the_step() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model(torch.ones(1, 3)).sum().backward()
    stages = split_stages(model)
    before = copy_weights(stages)
    with torch.no_grad():
        model[0].weight.mul_(1.25)
    assert float(update_tensors(stages, before)["0"]) == pytest.approx(0.25, rel=1e-4)
    zeros = {"0": torch.zeros_like(before["0"])}
    assert math.isnan(update_tensors(stages, zeros)["0"])  # from nothing, any step is large


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (["backbone.stages.0.body.0.weight", "backbone.stages.1.body.0.weight", "backbone.head.weight"], 3),
        (["module.backbone.conv1.weight", "module.backbone.layer1.0.conv1.weight"], 2),
        (["weight", "bias"], 2),
    ],
)
def test_stages_are_named_as_one_speaks_of_them(names: list[str], stages: int) -> None:
    class Named(nn.Module):
        def named_parameters(self, *_: object, **__: object) -> Iterator[tuple[str, nn.Parameter]]:
            return ((name, nn.Parameter(torch.ones(1))) for name in names)

    found = split_stages(Named())
    assert len(found) == stages
    assert not any("module" in stage.name or "backbone" in stage.name for stage in found)


def test_the_largest_matrix_stands_for_a_stage() -> None:
    bias, small, large = nn.Parameter(torch.ones(99)), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3, 3))
    assert Stage("one", (bias, small, large)).largest is large


def test_dead_units_of_a_convolution_are_whole_channels() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1.0, -1.0, -1.0, -1.0]))
    activations = Activations(model, lambda: PhaseClock(lambda: None).phase("monitor"))
    activations.attach(inputs=True)
    model(torch.randn(2, 1, 5, 5))
    activations.detach()
    assert float(activations.dead["1"]) == 0.75
    assert set(activations.variance) == {"0"}


def test_step_times_are_binned_and_the_longest_named() -> None:
    durations = summarize_durations([0.0101, 0.0101, 0.011, 0.5], first_step=7)
    assert durations.longest[0] == (10, 0.5)
    assert sum(durations.histogram.values()) == durations.num == 4
    for number, count in durations.histogram.items():
        inside = [
            s for s in (0.010, 0.010, 0.011, 0.5) if 10 ** (int(number) / 20) <= s < 10 ** ((int(number) + 1) / 20)
        ]
        assert len(inside) == count
    assert summarize_durations([], 1).num == 0


def test_samples_of_the_machine_become_shares_and_few_points() -> None:
    cores = summarize_usage([(0.0, UsageSample(0.0, 0.2, 0.5)), (1.0, UsageSample(0.5, 0.3, 0.9))])
    assert cores.cpu == [pytest.approx(0.5 / len(os.sched_getaffinity(0)))]
    assert (cores.memory, cores.gpu, cores.seconds) == ([0.3], [0.9], [1.0])
    many = summarize_usage([(float(t), UsageSample(0.0, t / 1000, float(t % 2))) for t in range(1001)])
    assert len(many.memory) == len(many.gpu) <= MAX_POINTS
    assert (many.gpu_p5, many.gpu_p95) == (0.0, 1.0)  # of the samples, not of their means
    assert summarize_usage([]).gpu_p95 is None


def test_this_process_is_sampled_while_it_works() -> None:
    with UsageSampler(ProcessProbe(CPU), interval_s=0.01) as sampler:
        until = time.perf_counter() + 0.15
        while time.perf_counter() < until:
            sum(range(1000))
        usage = sampler.drain()
    with mmap.mmap(-1, 2**27, flags=mmap.MAP_PRIVATE) as held:  # an allocator might keep what is freed
        held[:: mmap.PAGESIZE] = bytes(2**27 // mmap.PAGESIZE)
        before = private_bytes()
    assert before - private_bytes() > 1e8
    assert max(usage.cpu) > 0
    assert all(0 < share < 1 for share in usage.memory)
    assert usage.gpu == []
