"""When the health rules fire: SageMaker Debugger's and Profiler's defaults, and why where they are others."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthConfig:
    """Thresholds of the health rules."""

    vanishing_gradient: float = 1e-7
    """Mean absolute gradient of a stage below which it has vanished (Debugger: 1e-7)."""
    vanishing_samples: int = 20
    """In so many samples in a row (Debugger: 1). Layers that begin scaled to nothing, as ConvNeXt's (1e-6), have
    gradients of 1e-9 in their first steps and learn well."""
    nonfinite_share: float = 0.0
    """Share of a stage's tensors whose gradient may hold NaN or infinity (Debugger: none)."""
    exploded_loss: float = 1e4
    """Nats per row above which the loss has exploded though it is finite: behind normalising layers it stays so.
    Guessing among six counts costs 1.8 (Debugger has no such limit)."""
    init_steps: int = 10
    """Steps in which the initialisation is looked at (Debugger: 10)."""
    init_variance_ratio: float = 1e4
    """Largest over smallest variance of the layers' inputs, the first layer apart (Debugger: 10). Measured at their
    own initialisation: small_cnn 22, resnet34 40, vgg11 101, convnext_tiny 474, mobilenet_v3_small 3,865."""
    init_gradient_spread: float = 1e-3
    """95th minus 5th percentile of the gradient, in the stage where it is largest (Debugger: 0.001, in any tensor;
    healthy convnext_tiny has 4e-9 in one of them and 0.3 in another)."""
    loss_window_steps: int = 500
    """The training loss is compared between windows of so many steps, an epoch at most (Debugger saves every 500)."""
    loss_patience: int = 3
    """The mean of the last so many windows is compared; twice as many are needed."""
    loss_fall: float = 0.001
    """Least share by which the loss falls (Debugger: 0.1 %)."""
    loss_rise: float = 0.05
    """Share above its best by which it may rise (Debugger: 5 %)."""
    loss_floor: float = 0.05
    """Nats per row; below it there is nothing left to fall and shares mean nothing."""
    overfit_ratio: float = 0.1
    """(validation loss - training loss) / training loss above which a model overfits (Debugger: 0.1)."""
    overfit_patience: int = 3
    """For so many epochs in a row (Debugger: 1 step), and with the validation loss above its best by
    `overtraining_delta`: a gap alone is usual and harmless."""
    overtraining_train_epochs: int = 5
    """Epochs without a better training loss (Debugger: 5 steps)."""
    overtraining_val_epochs: int = 10
    """Epochs without a better validation loss (Debugger: 10 steps)."""
    overtraining_delta: float = 0.01
    """Nats per row by which a loss is better (Debugger: 0.01)."""
    dead_layer_share: float = 0.5
    """Share of a ReLU's units that are dead (Debugger: 50 %); a unit is if active in under 1 % of its values."""
    dead_samples: int = 3
    """In so many samples in a row (Debugger: 1)."""
    imbalance_ratio: float = 10.0
    """Rows of the most over those of the least frequent count (Debugger: 10)."""
    class_error: float = 0.7
    """Share of a count's validation rows that are counted wrong (Debugger: 0.7)."""
    class_error_epochs: int = 5
    """In each of the last so many epochs (Debugger: 1): at first every network counts some class wrong."""
    imbalance_rows: int = 500
    """Rows that must be seen first (Debugger: 500)."""
    update_large: float = 10.0
    """|dW| / |W| above which a step is too large (Debugger: 10)."""
    update_small: float = 1e-8
    """Median |dW| / |W| of an epoch's samples below which nothing changes (Debugger: 1e-8, in any step)."""
    update_samples: int = 5
    """An epoch needs so many samples for that: the schedule's very last steps are as small."""
    stalled_s: float = 1800.0
    """Seconds without a sign of life (Debugger: 1800)."""
    input_share: float = 0.5
    """Share of the step time spent waiting for data, an epoch's first batch apart (Profiler's IOBottleneck: 50 %)."""
    input_steps: int = 10
    """An epoch needs so many steps for that."""
    outlier_sigma: float = 3.0
    """Standard deviations above the epoch's mean that make a step an outlier (Profiler: 3)."""
    num_outliers: int = 10
    """More outliers than this in one epoch (Profiler: 10)."""
    memory_increase: float = 0.05
    """Share of the whole memory by which its use rises (Profiler: 5 points)."""
    memory_windows: int = 4
    """Over so many half epochs in a row, each higher than the one before; the first one is left out."""
    gpu_busy_p95: float = 0.7
    """95th percentile of the GPU's use below which it is under-used (Profiler: 70 %)."""
    gpu_idle_p5: float = 0.1
    """5th percentile below which it comes and goes (Profiler: 10 %)."""
    gpu_patience_s: float = 500.0
    """Seconds in which this must hold (Profiler: 1000 samples, each 0.5 s)."""
    slow_start_s: float = 1200.0
    """Seconds from the launch to the end of the first step (Profiler: 20 min)."""
