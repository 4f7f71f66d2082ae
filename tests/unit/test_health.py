"""Each rule sees a fault in a training that really has it, and none in a healthy one."""

import json
import mmap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bintally.model import SmallCNN
from train.health import RULES, check, write_findings
from train.health_config import HealthConfig
from train.health_record import EpochHealth, read_epoch
from train.health_rules import Finding
from train.health_system_rules import stall_finding
from train.monitor import Monitor
from train.usage import UsageSample

NUM_CLASSES, FEATURES = 4, 8
CONFIG = HealthConfig()


@pytest.fixture(autouse=True)
def seeded_on_one_thread() -> Iterator[None]:
    """One thread: the networks are too small to share, and times are compared."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mlp(width: int = 16) -> nn.Sequential:
    layers = [nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, NUM_CLASSES)]
    return nn.Sequential(*layers)


def rows(num: int, *, learnable: bool = True) -> tuple[Tensor, Tensor]:
    """Features and labels; the labels are a linear function of the features, or random."""
    teacher = torch.randn(FEATURES, NUM_CLASSES, generator=torch.Generator().manual_seed(7))
    x = torch.randn(num, FEATURES)
    return x, (x @ teacher).argmax(dim=1) if learnable else torch.randint(0, NUM_CLASSES, (num,))


def nothing(_: int) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Training:
    """A real training under the monitor, in the order of train/loop.py."""

    model: nn.Module
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor] | None = None
    epochs: int = 2
    lr: float = 0.1
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    batch: int = 16
    every: int = 5
    in_loader: Callable[[int], None] = nothing
    in_step: Callable[[int], None] = nothing
    """Both get the step within the epoch."""

    def run(self, **monitor_options: object) -> list[EpochHealth]:
        optimizer = self.optimizer(self.model.parameters(), lr=self.lr)  # type: ignore[call-arg]
        options = {"every": self.every, "interval_s": 0.005} | monitor_options
        monitor = Monitor(self.model, torch.device("cpu"), num_classes=NUM_CLASSES, **options)  # type: ignore[arg-type]
        history = []
        with monitor:
            for epoch in range(1, self.epochs + 1):
                for number, (x, y) in enumerate(monitor.steps(self.batches())):
                    monitor.see_counts(y.numpy())
                    with monitor.phase("forward"):
                        loss = F.cross_entropy(self.model(x), y, reduction="sum")
                        optimizer.zero_grad()
                    with monitor.phase("backward"):
                        (loss / len(y)).backward()
                    monitor.after_backward()
                    with monitor.phase("optimizer"):
                        optimizer.step()
                    monitor.after_step(loss, len(y))
                    self.in_step(number)
                with monitor.phase("validation"):
                    figures = self.validate()
                # Through JSON, as on the way from the worker to the driver.
                history.append(read_epoch(json.loads(json.dumps(monitor.epoch_summary(epoch, **figures)))))  # type: ignore[arg-type]
        return history

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.train
        order = torch.randperm(len(y))
        for number, at in enumerate(range(0, len(y), self.batch)):
            self.in_loader(number)
            yield x[order[at : at + self.batch]], y[order[at : at + self.batch]]

    @torch.no_grad()
    def validate(self) -> dict[str, object]:
        if self.val is None:
            return {}
        x, y = self.val
        logits = self.model(x)
        cells = torch.bincount(y * NUM_CLASSES + logits.argmax(dim=1), minlength=NUM_CLASSES**2)
        return {
            "val_loss": float(F.cross_entropy(logits, y)),
            "val_confusion": cells.reshape(NUM_CLASSES, NUM_CLASSES).tolist(),
        }


def found(history: list[EpochHealth], rule: str, config: HealthConfig = CONFIG) -> Finding:
    findings = {finding.rule: finding for finding in check(history, config)}
    assert rule in findings, sorted(findings)
    assert findings[rule].saw
    assert findings[rule].advice
    return findings[rule]


def rules_of(history: list[EpochHealth], config: HealthConfig = CONFIG) -> list[str]:
    return [finding.rule for finding in check(history, config)]


def healthy() -> Training:
    return Training(model=mlp(), train=rows(800), val=rows(600), epochs=12, batch=32)


def test_no_rule_fires_on_a_healthy_training() -> None:
    history = healthy().run()
    assert rules_of(history) == []
    assert history[-1].train_loss is not None
    assert history[0].train_loss is not None
    assert history[-1].train_loss < history[0].train_loss / 2


def test_no_rule_fires_on_a_few_epochs_of_the_small_network() -> None:
    """Images whose brightness is the label, with AdamW as in the demo."""
    y = torch.randint(0, NUM_CLASSES, (160,))
    x = torch.randn(160, 3, 32, 32) * 0.3 + y.view(-1, 1, 1, 1)
    training = Training(model=SmallCNN(NUM_CLASSES), train=(x, y), val=(x, y), epochs=4, lr=3e-3, batch=32)
    assert rules_of(replace(training, optimizer=torch.optim.AdamW).run()) == []


def test_initial_weights_near_zero_make_gradients_vanish() -> None:
    model = mlp()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-6)
    finding = found(Training(model=model, train=rows(160), epochs=3, lr=1e-3, every=1).run(), "vanishing_gradient")
    assert finding.severity == "stop"
    assert (finding.epoch, finding.step) == (1, 1)
    assert finding.value is not None
    assert finding.value < 1e-7


@pytest.mark.parametrize("model", [mlp(), SmallCNN(NUM_CLASSES)], ids=["to NaN", "finite behind its norms"])
def test_a_learning_rate_of_a_million_explodes(model: nn.Module) -> None:
    data = rows(160)
    if isinstance(model, SmallCNN):
        data = torch.randn(160, 3, 16, 16), data[1]
    finding = found(Training(model=model, train=data, lr=1e6).run(), "exploding_tensor")
    assert finding.severity == "stop"
    assert finding.epoch == 1
    assert finding.step is not None
    assert finding.step <= 10


def test_a_loss_that_explodes_after_the_last_sample_is_seen_at_the_end_of_the_epoch() -> None:
    model = mlp()

    def spoil(number: int) -> None:
        if number == 12:
            with torch.no_grad():
                model[0].weight.fill_(torch.nan)

    history = Training(model=model, train=rows(240), epochs=1, every=1000, in_step=spoil).run()
    finding = found(history, "exploding_tensor")
    assert (finding.epoch, finding.step, finding.value) == (1, None, None)


def test_badly_scaled_layers_are_a_poor_initialisation() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight.mul_(1000)
        model[2].weight.mul_(1000)
    history = Training(model=model, train=rows(160), lr=1e-9).run()
    finding = found(history, "poor_initialisation")
    assert finding.step == 1
    assert finding.value is not None
    assert finding.value > 1e4


def test_an_initialisation_without_any_gradient_is_poor() -> None:
    model = mlp()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-3)
    # Only the last bias would learn; it does not count, since a stage is judged by its weight.
    assert "percentile" in found(Training(model=model, train=rows(160)).run(), "poor_initialisation").saw


def test_a_learning_rate_of_zero_changes_nothing() -> None:
    history = Training(model=mlp(), train=rows(160), epochs=7, lr=0.0).run()
    finding = found(history, "loss_not_decreasing")
    assert finding.severity == "stop"
    assert "loss_not_decreasing" not in rules_of(history[:5])  # six epochs are needed
    assert found(history[:1], "update_ratio").value == 0


def test_a_loss_that_rises_again_is_seen_since_it_rose() -> None:
    training = Training(model=mlp(), train=rows(320), epochs=4)
    wrong = replace(training, train=(training.train[0], (training.train[1] + 1) % NUM_CLASSES), lr=1e-4)
    first = training.run()
    later = [replace(epoch, epoch=epoch.epoch + 4) for epoch in wrong.run(steps_done=80)]
    finding = found(first + later, "loss_not_decreasing")
    assert "rose" in finding.saw
    assert (finding.epoch, finding.step) == (6, 120)  # the mean of epochs 6 to 8 is above the best


def test_steps_that_replace_the_weights_are_too_large() -> None:
    finding = found(Training(model=mlp(), train=rows(160), epochs=1, lr=1e4).run(), "update_ratio")
    assert finding.value is not None
    assert finding.value > 10
    assert "lower" in finding.advice


def test_random_labels_learned_by_heart_are_overfitting() -> None:
    data = {"train": rows(64, learnable=False), "val": rows(200, learnable=False)}
    training = Training(model=mlp(64), epochs=30, lr=1e-2, optimizer=torch.optim.Adam, **data)
    history = training.run()
    finding = found(history, "overfit")
    assert finding.epoch > 1
    assert "overfit" not in rules_of(history[: finding.epoch + 1])  # three epochs in a row are needed


def test_a_loss_that_stays_is_overtraining() -> None:
    finding = found(Training(model=mlp(), train=rows(160), epochs=7, lr=1e-6).run(), "overtraining")
    assert finding.epoch == 1
    assert finding.severity == "stop"


def test_a_validation_loss_that_stays_is_overtraining_later() -> None:
    training = Training(model=mlp(), train=rows(320), val=rows(200, learnable=False), epochs=16, lr=0.05)
    finding = found(training.run(), "overtraining")
    assert "validation" in finding.saw
    assert finding.value is not None
    assert finding.value >= 10


def test_units_behind_a_large_negative_bias_are_dead() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].bias.fill_(-1e3)
    finding = found(Training(model=model, train=rows(160)).run(), "dead_units")
    assert (finding.value, finding.step) == (1.0, 1)
    assert " 3 " in finding.saw  # the name of the ReLU behind it


def test_a_count_fifty_times_rarer_is_an_imbalance() -> None:
    x, y = rows(1000)
    y = torch.cat([torch.zeros(980, dtype=torch.int64), torch.arange(20) % 3 + 1])
    finding = found(Training(model=mlp(), train=(x, y), epochs=1).run(), "class_imbalance")
    assert finding.value == pytest.approx(980 / 6)
    few = Training(model=mlp(), train=(x[:400], y[:400]), epochs=1).run()
    assert "class_imbalance" not in rules_of(few)  # 500 rows are needed


def test_a_count_that_is_always_counted_wrong_is_an_imbalance() -> None:
    x, y = rows(800)
    hidden = torch.where(y == 2, 1, y)  # what holds count 2 is called 1
    y_train = torch.cat([hidden[:700], torch.full((100,), 2)])  # and what is called 2 may hold anything
    history = Training(model=mlp(), train=(x, y_train), val=(x, y), epochs=6).run()
    finding = found(history, "class_imbalance")
    assert "count 2 are counted wrong" in finding.saw
    assert finding.epoch == 2
    assert "class_imbalance" not in rules_of(history[:4])  # five epochs are needed


def test_a_slow_loader_bounds_the_training() -> None:
    training = Training(model=mlp(), train=rows(320))
    history = replace(training, in_loader=lambda _: time.sleep(0.02)).run()
    finding = found(history, "input_bound")
    assert finding.value is not None
    assert finding.value > 0.5
    # Starting the pipeline does not count. Each step sleeps too, so that a busy machine decides nothing.
    slow_first = replace(training, in_loader=lambda n: time.sleep(0.3 * (n == 0)), in_step=lambda _: time.sleep(0.01))
    history = slow_first.run()
    assert history[0].phases["wait"] > 0.3
    assert "input_bound" not in rules_of(history)


def test_steps_that_sleep_are_outliers() -> None:
    def sometimes(step: int) -> None:
        time.sleep(0.2 if step % 18 == 17 else 0.0)  # far above what a busy machine does by itself

    training = Training(model=mlp(), train=rows(4000), epochs=1)
    finding = found(replace(training, in_step=sometimes).run(), "step_outliers")
    assert finding.value is not None
    assert finding.value > 10
    assert finding.step is not None
    assert finding.step <= 18


def test_tensors_that_are_kept_make_memory_grow() -> None:
    kept: list[Tensor] = []

    def keep(_: int) -> None:
        pages = mmap.mmap(-1, 2**20, flags=mmap.MAP_PRIVATE)  # an allocator might have as much left from other tests
        kept.append(torch.frombuffer(pages, dtype=torch.float32).fill_(1.0))
        time.sleep(0.002)

    config = replace(CONFIG, memory_increase=0.001)  # of 24 GB these are 24 MB
    training = Training(model=mlp(), train=rows(320), epochs=5)
    finding = found(replace(training, in_step=keep).run(), "memory_growth", config)
    assert finding.value is not None
    assert finding.value > 0.001
    held_back = replace(training, in_step=lambda _: time.sleep(0.002)).run()
    assert "memory_growth" not in rules_of(held_back, config)


def test_a_slow_first_step_is_a_slow_start() -> None:
    training = Training(model=mlp(), train=rows(160), in_loader=lambda n: time.sleep(0.2 if n == 0 else 0.0))
    finding = found(training.run(), "slow_start", replace(CONFIG, slow_start_s=0.15))
    assert finding.value is not None
    assert 0.2 <= finding.value < 2
    launched = training.run(launched=time.time() - 2000)
    assert found(launched, "slow_start").value == pytest.approx(2000, abs=10)
    assert launched[1].startup_s is None


def test_a_training_that_hangs_is_told_while_it_hangs_and_afterwards() -> None:
    told: list[tuple[int, float]] = []
    training = Training(model=mlp(), train=rows(160), epochs=1, in_step=lambda step: time.sleep(1.5 * (step == 6)))
    history = training.run(stalled_s=0.7, on_stall=lambda step, seconds: told.append((step, seconds)))
    assert [step for step, _ in told] == [6]  # once, and six steps were done
    assert 0.7 < told[0][1] < 1.5
    finding = found(history, "stalled", replace(CONFIG, stalled_s=0.7))
    assert finding.severity == "stop"
    assert finding.value == pytest.approx(1.5, abs=0.5)
    assert stall_finding(1, 6, 1.5, 0.7).rule == finding.rule


@dataclass
class RecordedGpu:
    """A probe that gives recorded samples instead of a real GPU's."""

    busy: list[float]
    at: int = -1

    def __call__(self) -> UsageSample:
        self.at += 1
        return UsageSample(cpu_s=0.01 * self.at, memory=0.5, gpu=self.busy[self.at % len(self.busy)])


@pytest.mark.parametrize(
    ("busy", "says"),
    [([0.3, 0.4, 0.5], "smaller GPU"), ([0.0, 0.95, 0.98], "steadily"), ([0.9, 0.95, 0.98], None)],
    ids=["under-used", "fluctuating", "busy"],
)
def test_recorded_samples_of_an_idle_gpu_are_low_use(busy: list[float], says: str | None) -> None:
    training = Training(model=mlp(), train=rows(160), epochs=3, in_step=lambda _: time.sleep(0.01))
    history = training.run(probe=RecordedGpu(busy))
    config = replace(CONFIG, gpu_patience_s=0.1)
    if says is None:
        assert "low_gpu_use" not in rules_of(history, config)
    else:
        assert says in found(history, "low_gpu_use", config).advice
    assert "low_gpu_use" not in rules_of(history)  # it must last for 500 s


def test_findings_are_written_the_gravest_first(tmp_path: Path) -> None:
    history = Training(model=mlp(), train=rows(160), epochs=7, lr=0.0, in_loader=lambda _: time.sleep(0.005)).run()
    findings = check(history, CONFIG)
    assert findings[0].severity == "stop"
    assert "input_bound" in [finding.rule for finding in findings]
    assert findings[-1].severity == "warn"
    write_findings(findings, tmp_path / "health.json")
    written = json.loads((tmp_path / "health.json").read_text())
    assert [one["rule"] for one in written["findings"]] == [finding.rule for finding in findings]
    assert len(written["rules"]) == len(RULES)


def test_nothing_is_wrong_with_nothing() -> None:
    assert check([], CONFIG) == []
    assert np.isfinite([CONFIG.stalled_s, CONFIG.slow_start_s]).all()
