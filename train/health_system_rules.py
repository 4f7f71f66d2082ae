"""Rules about the machine: waiting for data, uneven steps, memory, an idle GPU, a slow start, no progress at all."""

from typing import Final

from train.health_config import HealthConfig
from train.health_record import EpochHealth
from train.health_rules import Finding, History, Rule


def stalled(history: History, config: HealthConfig) -> Finding | None:
    """There was no sign of life for long. While it lasts, `Monitor` calls `on_stall` instead."""
    for epoch in history:
        if epoch.longest_gap_s > config.stalled_s:
            return stall_finding(epoch.epoch, epoch.gap_step, epoch.longest_gap_s, config.stalled_s)
    return None


def stall_finding(epoch: int, step: int, seconds: float, threshold_s: float) -> Finding:
    """What to say of a training that hangs, or hung."""
    return Finding(
        rule="stalled",
        severity="stop",
        saw=f"no sign of life for {seconds:,.1f} s",
        epoch=epoch,
        step=step,
        advice="look at the workers' logs and stacks (`ray stack`): a dead source, a lost peer or a full disk",
        value=seconds,
        threshold=threshold_s,
    )


def input_bound(history: History, config: HealthConfig) -> Finding | None:
    """Steps mostly wait for data; an epoch's first batch is left out, since it starts the pipeline."""
    for epoch in history:
        waited = epoch.phases.get("wait", 0.0) - epoch.first_wait_s
        in_steps = epoch.steps.mean_s * epoch.steps.num - epoch.first_wait_s
        if epoch.steps.num >= config.input_steps and waited > config.input_share * in_steps > 0:
            return Finding(
                rule="input_bound",
                severity="warn",
                saw=f"{waited / in_steps:.0%} of the step time is spent waiting for data",
                epoch=epoch.epoch,
                step=epoch.first_step,
                advice="store the decoded photos or packed shards first, give the data tasks more CPUs, decode smaller",
                value=waited / in_steps,
                threshold=config.input_share,
            )
    return None


def step_outliers(history: History, config: HealthConfig) -> Finding | None:
    """Many steps take far longer than the others of their epoch."""
    for epoch in history:
        limit_s = epoch.steps.mean_s + config.outlier_sigma * epoch.steps.std_s
        outliers = [step for step, seconds in epoch.steps.longest if seconds > limit_s]
        if len(outliers) > config.num_outliers:
            return Finding(
                rule="step_outliers",
                severity="warn",
                saw=f"{len(outliers)} of {epoch.steps.num:,} steps took more than {limit_s:.3g} s; half of all took"
                f" {epoch.steps.median_s:.3g} s at most",
                epoch=epoch.epoch,
                step=min(outliers),
                advice="look for what happens then: garbage collection, a slow source, another job on the machine",
                value=float(len(outliers)),
                threshold=float(config.num_outliers),
            )
    return None


def memory_growth(history: History, config: HealthConfig) -> Finding | None:
    """Memory rises from half epoch to half epoch; the first one, in which caches fill, is left out."""
    halves = [half for epoch in history for half in _memory_halves(epoch)][1:]
    for end in range(config.memory_windows, len(halves) + 1):
        run = halves[end - config.memory_windows : end]
        levels = [level for _, level in run]
        # The whole rise counts, however slow: as far back as it goes on.
        begin = end - config.memory_windows
        while begin > 0 and halves[begin - 1][1] < halves[begin][1]:
            begin -= 1
        rise = levels[-1] - halves[begin][1]
        if levels == sorted(set(levels)) and rise > config.memory_increase:
            return Finding(
                rule="memory_growth",
                severity="warn",
                saw=f"memory in use rose from {halves[begin][1]:.1%} to {levels[-1]:.1%} and never fell",
                epoch=halves[begin][0],
                step=None,
                advice="look for tensors that are kept, as a list of losses without .detach() or float()",
                value=rise,
                threshold=config.memory_increase,
            )
    return None


def _memory_halves(epoch: EpochHealth) -> list[tuple[int, float]]:
    levels = epoch.usage.memory
    middle = len(levels) // 2
    return [(epoch.epoch, sum(half) / len(half)) for half in (levels[:middle], levels[middle:]) if half]


def low_gpu_use(history: History, config: HealthConfig) -> Finding | None:
    """The GPU idles, or comes and goes, for `gpu_patience_s`."""
    since: EpochHealth | None = None
    seconds = 0.0
    for epoch in history:
        p95, p5 = epoch.usage.gpu_p95, epoch.usage.gpu_p5
        if p95 is None or p5 is None or (p95 >= config.gpu_busy_p95 and p5 >= config.gpu_idle_p5):
            since, seconds = None, 0.0
            continue
        since, seconds = since or epoch, seconds + epoch.wall_s
        if seconds >= config.gpu_patience_s:
            return _idle_gpu(since, p95, p5, config)
    return None


def _idle_gpu(since: EpochHealth, p95: float, p5: float, config: HealthConfig) -> Finding:
    under_used = p95 < config.gpu_busy_p95
    return Finding(
        rule="low_gpu_use",
        severity="warn",
        saw=f"the GPU is busy {p95:.0%} of the time at best (95th percentile), {p5:.0%} at worst (5th)",
        epoch=since.epoch,
        step=since.first_step,
        advice="raise the batch size or use a smaller GPU" if under_used else "feed it steadily: see input_bound",
        value=p95 if under_used else p5,
        threshold=config.gpu_busy_p95 if under_used else config.gpu_idle_p5,
    )


def slow_start(history: History, config: HealthConfig) -> Finding | None:
    """The first step came late."""
    for epoch in history:
        if epoch.startup_s is not None and epoch.startup_s > config.slow_start_s:
            return Finding(
                rule="slow_start",
                severity="warn",
                saw=f"the first step ended {epoch.startup_s:,.1f} s after the launch",
                epoch=epoch.epoch,
                step=epoch.first_step,
                advice="keep the list of bins and stored photos between runs; see what the first batch waits for",
                value=epoch.startup_s,
                threshold=config.slow_start_s,
            )
    return None


SYSTEM_RULES: Final[tuple[Rule, ...]] = (
    stalled,
    input_bound,
    step_outliers,
    memory_growth,
    low_gpu_use,
    slow_start,
)
