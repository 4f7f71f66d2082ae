"""What each training worker runs, top to bottom: batches in, one report with a checkpoint per epoch out."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

import ray.train
import torch
from torch import Tensor, nn

from bintally.batch import COUNT, PADDING, ArrayBatch
from bintally.config import Recipe, recipe_from_dict
from bintally.errors import NoUsableRowsError
from bintally.loss import class_weights
from bintally.metrics import CountTally
from bintally.model import build_model
from data.feed import Feed, FeedSpec
from train.ema import WeightAverage
from train.figures import Keep, epoch_figures, worst_figures
from train.health import check
from train.health_config import HealthConfig
from train.health_record import read_epoch
from train.health_system_rules import stall_finding
from train.memory import with_fitting_batches
from train.monitor import Monitor
from train.news import News
from train.optim import Schedule, build_optimizer, set_train_mode, set_trained, trained_changes
from train.state import Fit, Progress, report, report_partial, resume
from train.step import Stepper, on_device
from train.workers import Notice, Worker

CONTROL_STEPS: Final = 8  # between two looks at the clock and at what the GPU found; each waits for all workers


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """What the loop needs to know."""

    recipe: Recipe
    num_ids: int
    """Of a training epoch, with those that turn out to be unusable."""
    train: FeedSpec
    """What an epoch trains on."""
    val: FeedSpec
    """What it is scored on."""
    class_rows: tuple[int, ...] | None
    """Training rows by count, where they are known."""
    checkpoint_s: float
    """Seconds between checkpoints within an epoch."""
    on_health: str
    """stop or warn."""
    stalled_s: float
    """Seconds without a sign of life that are a stall."""
    launched: float
    """When the run was started, by `time.time()`."""
    name: str
    """Of the training, among others of a search."""
    keep: Keep
    """Which checkpoint is best."""
    news: News | None
    """Hears of a stall while it lasts."""

    def pack(self) -> dict[str, Any]:
        """As the plain dict that Ray sends to the workers."""
        return {name: getattr(self, name) for name in self.__slots__} | {"recipe": asdict(self.recipe)}

    @classmethod
    def unpack(cls, values: dict[str, Any]) -> "LoopConfig":
        """The inverse of `pack`."""
        return cls(**{**values, "recipe": recipe_from_dict(values["recipe"])})


class DivergedError(Exception):
    """The gradient is no finite number any more; the message says since when and of which photos. Ends no process."""


@dataclass(frozen=True, slots=True)
class Run:
    """What stays the same during a training."""

    config: LoopConfig
    fit: Fit
    worker: Worker
    notice: Notice
    monitor: Monitor
    train: Feed
    val: Feed


def train_loop(values: dict[str, Any]) -> None:
    """Train on this worker's share of the rows; reports once per epoch."""
    config, worker = LoopConfig.unpack(values), Worker.here()
    recipe = config.recipe
    fit = _start(config, worker)
    progress = resume(fit)
    if recipe.compute.fit_memory:
        fit = with_fitting_batches(fit, worker)
    with _monitor(config, fit, worker, progress) as monitor:
        feeds = _open_feed(config.train, "train", worker), _open_feed(config.val, "val", worker)
        run = Run(config, fit, worker, Notice(worker, config.news, config.name), monitor, *feeds)
        model: nn.Module | None = None
        while progress.epoch <= recipe.max_epochs and not _had_enough(recipe, progress):
            if model is None or trained_changes(fit.model, recipe.optim, progress.epoch):
                set_trained(fit.model, recipe.optim, progress.epoch)
                model = worker.wrap(fit.model)
            started = time.monotonic()
            try:
                trained = _train_epoch(run, model, progress)
            except DivergedError as error:
                ray.train.report(_diverged_metrics(progress.epoch, str(error)))
                return
            train_s = time.monotonic() - started
            tally = _validate(run, trained)
            metrics = {
                "epoch": trained.epoch,
                "num_images": trained.num_images,
                **epoch_figures(trained.loss_sum / trained.num_images, tally.summary()),
                "num_workers": worker.num_workers,
                "lr": fit.optimizer.param_groups[-1]["lr"],
                "train_s": train_s,
                "epoch_s": time.monotonic() - started,
                "images_per_s": (trained.num_images - progress.num_images) / train_s,
            }
            health = monitor.epoch_summary(
                progress.epoch, val_loss=metrics["val_nll"], val_confusion=tally.confusion.tolist()
            )
            fit.schedule.end_epoch(metrics["val_nll"])
            progress = trained.after_epoch(metrics["val_nll"], health)
            findings = check([read_epoch(epoch) for epoch in progress.health], HealthConfig(stalled_s=config.stalled_s))
            with monitor.phase("checkpoint"):
                report(metrics | {"health": health, "findings": [asdict(one) for one in findings]}, fit, progress)
            hopeless = config.on_health == "stop" and any(one.severity == "stop" for one in findings)
            if worker.any(hopeless and worker.rank == 0):
                return


def _start(config: LoopConfig, worker: Worker) -> Fit:
    recipe = config.recipe
    torch.manual_seed(recipe.seed)
    size = recipe.data.image_size
    model = build_model(recipe.model, num_classes=recipe.data.num_classes, image_size=size).to(worker.device)
    if worker.num_workers > 1 and worker.device.type == "cuda":  # there is none for CPUs
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if recipe.compute.compile:
        model.compile()
    optimizer = build_optimizer(model, recipe.optim)
    schedule = Schedule(optimizer, recipe.optim, recipe.max_epochs)
    average = WeightAverage(model, recipe.optim.ema_decay) if recipe.optim.ema_decay else None
    return Fit(recipe, model, optimizer, schedule, average)


def _monitor(config: LoopConfig, fit: Fit, worker: Worker, progress: Progress) -> Monitor:
    return Monitor(
        fit.model,
        worker.device,
        num_classes=config.recipe.data.num_classes,
        steps_done=progress.steps_before + progress.step,
        launched=config.launched,
        stalled_s=config.stalled_s,
        on_stall=partial(_tell_stall, config) if worker.rank == 0 else None,
        activations=not config.recipe.compute.compile,
    )


def _tell_stall(config: LoopConfig, step: int, seconds: float) -> None:
    if config.news is not None:
        finding = stall_finding(0, step, seconds, config.stalled_s)
        config.news.put(f"{config.name}: {finding.saw} after step {step}, and still none; {finding.advice}")


def _open_feed(spec: FeedSpec, split: str, worker: Worker) -> Feed:
    return spec.open(worker.rank, worker.num_workers, None if spec.stored else ray.train.get_dataset_shard(split))


def _had_enough(recipe: Recipe, progress: Progress) -> bool:
    """Whether the validation has not improved for as long as the recipe's patience lasts."""
    return recipe.patience is not None and progress.num_worse >= recipe.patience


def _train_epoch(run: Run, model: nn.Module, progress: Progress) -> Progress:
    """The rest of an epoch; its sums, over all workers.

    Raises:
        DivergedError: a gradient was not finite; on all workers alike.
        NoUsableRowsError: there was not one row; on all workers alike.
    """
    fit, worker, monitor = run.fit, run.worker, run.monitor
    set_train_mode(model)
    stepper = Stepper(fit, model, worker, monitor, _weights_of(run), progress.epoch)
    before, num_images = progress, 0
    loss_sum = torch.zeros((), dtype=torch.float64, device=worker.device)
    unchecked: list[tuple[list[str], Tensor]] = []  # what the steps since the last look were of
    saved = time.monotonic()

    def store() -> None:
        _check_finite(worker, unchecked, progress)  # nobody could go on from a checkpoint that has diverged
        unchecked.clear()
        with monitor.phase("checkpoint"):
            report_partial(fit, _with_sums(progress, before, worker, loss_sum, num_images), run.config.keep)

    feed = run.train.epoch(progress.epoch, start=progress.position, on_wait=run.notice.in_wait(store))
    for batch in monitor.steps(on_device(_seen(feed, monitor), worker.device, monitor)):
        begin, end = (progress.epoch - 1 + at / run.config.num_ids for at in (progress.position, batch.next_position))
        fit.schedule.begin_step(begin, end)
        loss, norm = stepper.step(batch, progress.step)
        loss_sum += loss  # on the device: reading it here would wait for the GPU at every step
        num_images += len(batch.ids)
        unchecked.append((batch.ids, norm))
        progress = replace(progress, step=progress.step + 1, position=batch.next_position)
        if progress.step % CONTROL_STEPS == 0:
            _check_finite(worker, unchecked, progress)
            unchecked.clear()
            due = time.monotonic() - saved >= run.config.checkpoint_s
            if run.notice.came() or worker.any(worker.rank == 0 and due):
                store()
                saved = time.monotonic()
    _check_finite(worker, unchecked, progress)
    worker.share_buffers(fit.model)
    trained = _with_sums(progress, before, worker, loss_sum, num_images)
    _check_any("train", trained.num_images)
    return trained


def _seen(batches: Iterable[ArrayBatch], monitor: Monitor) -> Iterator[ArrayBatch]:
    for batch in batches:
        monitor.see_counts(batch[COUNT])
        yield batch


def _weights_of(run: Run) -> Tensor | None:
    if not run.config.recipe.loss.class_weights:
        return None
    assert run.config.class_rows is not None
    return class_weights(torch.tensor(run.config.class_rows)).to(run.worker.device)


def _with_sums(progress: Progress, before: Progress, worker: Worker, loss_sum: Tensor, num_images: int) -> Progress:
    """Progress with what all workers added to the sums since `before`."""
    total = worker.sum(torch.tensor([float(loss_sum), num_images], dtype=torch.float64))
    return replace(
        progress,
        loss_sum=before.loss_sum + float(total[0]),
        num_images=before.num_images + round(float(total[1])),
    )


def _check_finite(worker: Worker, steps: Sequence[tuple[list[str], Tensor]], progress: Progress) -> None:
    """Look at the gradients of the last steps. Their norms are of all workers' gradients, so all find the same."""
    if not steps:
        return
    finite = torch.stack([norm for _, norm in steps]).isfinite().tolist()
    if all(finite):
        return
    first = finite.index(False)
    ids = sorted(worker.gather(steps[first][0]))
    number = progress.step - len(steps) + first + 1
    raise DivergedError(
        f"the gradient is not finite since batch {number} of epoch {progress.epoch}; choose a lower learning rate, or"
        f" look at the photos of that batch: {', '.join(ids)}"
    )


@torch.inference_mode()
def _validate(run: Run, trained: Progress) -> CountTally:
    """The score of the weights that are kept, over all workers."""
    fit, worker, monitor = run.fit, run.worker, run.monitor

    def store() -> None:
        with fit.learning():
            report_partial(fit, trained, run.config.keep)

    fit.model.eval()
    tally = CountTally.empty(fit.recipe.data.num_classes)
    feed = run.val.epoch(trained.epoch, on_wait=run.notice.in_wait(store))
    with monitor.phase("validation"), fit.averaged():
        for batch in monitor.alive(on_device(feed, worker.device, monitor)):
            real = batch.counts != PADDING
            if batch.ids:
                with torch.autocast(worker.device.type, torch.bfloat16, enabled=fit.recipe.compute.precision == "bf16"):
                    outputs = fit.model(batch.images[real])
                tally = tally + CountTally.of(fit.model.log_probabilities(outputs), batch.counts[real])
        whole = CountTally.from_vector(worker.sum(tally.to_vector()))
    _check_any("val", whole.num_images)
    return whole


def _check_any(split: str, num_rows: int) -> None:
    """End a training on a stream that turned out to be empty."""
    if num_rows == 0:
        raise NoUsableRowsError(
            f"no usable row in the {split} split; the drop table says why: change ids, max_images, max_count, split_by"
        )


def _diverged_metrics(epoch: int, reason: str) -> dict[str, Any]:
    """An epoch that nobody may choose, with the reason."""
    return {"epoch": epoch, **worst_figures(), "diverged": reason}
