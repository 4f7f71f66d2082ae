"""The rows of the results on real photos: which recipe with which settings, and what keeps a row from being run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bintally.errors import ConfigError

NO_WEIGHTS: Final = "needs pretrained weights: give a file of torchvision's {backbone} by --weights"
QUICK_SETTINGS: Final = ("data.image_size=32", "max_epochs=1", "allow_empty_counts=true")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row: a named recipe, changed by settings as `train/fit.py --set` takes them."""

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    """On any machine."""
    cpu: tuple[str, ...] = ()
    """Also on a CPU, so that three seeds of the rows it takes by default end within about 40 minutes on two cores."""
    gpu: tuple[str, ...] = ()
    """Also on a GPU."""
    pretrained: str | None = None
    """The backbone whose weights it cannot do without."""
    after_synthetic: bool = False
    """Whether it begins with the weights of a training on drawn bins; see benchmarks/parts/pretraining.py."""
    on_cpu: bool = True
    """Whether it is run by default on a CPU."""

    def settings_on(self, *, use_gpu: bool, quick: bool) -> tuple[str, ...]:
        """Everything that differs from the recipe; of a field that is set twice, the last counts."""
        chosen = self.settings + (self.gpu if use_gpu else self.cpu) + (QUICK_SETTINGS if quick else ())
        by_field = {setting.partition("=")[0]: setting for setting in chosen}
        return tuple(by_field.values())

    def why_skipped(self, weights: Path | None) -> str | None:
        """Why the row cannot be run; None if it can."""
        if self.pretrained and weights is None:
            return NO_WEIGHTS.format(backbone=self.pretrained)
        return None


_GENTLE: Final = ("augment.contrast=0.2", "augment.colour=0.05", "augment.blur=0.1", "augment.shrink=0.15")
_SMALL_CNN: Final = ("data.resize=letterbox", "optim.ema_decay=0.998", *_GENTLE)
_SMALL_CNN_CPU: Final = ("data.image_size=96", "max_epochs=20")
_SMALL_CNN_GPU: Final = ("data.image_size=128", "max_epochs=60")
_RESNET18: Final = (  # on the photos of the small recipe
    *("model.backbone=resnet18", "data.image_size=160", "max_epochs=40", "patience=8"),
    *("optim.lr=1e-3", "optim.global_batch_size=64", "optim.ema_decay=null"),
)
_RESNET18_CPU: Final = ("data.image_size=64", "max_epochs=5")

# CPU-seconds of one thread per epoch over 3,067 photos: small_cnn 5 (96 px), resnet18 30 (64 px), resnet34 35 (48 px).
ROWS: Final = (
    Row(
        name="report_resnet50",
        recipe="report_resnet50",
        cpu=("data.image_size=96", "max_epochs=2"),
        pretrained="resnet50",
    ),
    Row(  # where nothing can be downloaded: the same recipe on a backbone that nobody trained
        name="report_resnet50_random",
        recipe="report_resnet50",
        settings=("model.weights=null",),
        cpu=("data.image_size=64", "max_epochs=4"),
    ),
    Row(
        name="baseline_resnet34",
        recipe="baseline_resnet34",
        cpu=("data.image_size=48", "max_epochs=4", "optim.step_epochs=1"),  # steps at the same shares of the training
    ),
    Row(name="small_cnn", recipe="demo", settings=_SMALL_CNN, cpu=_SMALL_CNN_CPU, gpu=_SMALL_CNN_GPU),
    Row(  # what the next row is compared with: the same learning rate, and nothing to begin with
        name="small_cnn_gently",
        recipe="demo",
        settings=(*_SMALL_CNN, "optim.lr=1e-3"),
        cpu=_SMALL_CNN_CPU,
        gpu=_SMALL_CNN_GPU,
    ),
    Row(
        name="small_cnn_after_synthetic",
        recipe="demo",
        settings=(*_SMALL_CNN, "optim.lr=1e-3"),  # gently, as one goes on with weights
        cpu=_SMALL_CNN_CPU,
        gpu=_SMALL_CNN_GPU,
        after_synthetic=True,
    ),
    Row(
        name="small_cnn_corn",
        recipe="demo",
        settings=(*_SMALL_CNN, "model.head=corn"),
        cpu=_SMALL_CNN_CPU,
        gpu=_SMALL_CNN_GPU,
        on_cpu=False,
    ),
    Row(name="small", recipe="small", settings=_RESNET18, cpu=_RESNET18_CPU, on_cpu=False),
    Row(
        name="small_corn",
        recipe="small",
        settings=(*_RESNET18, "model.head=corn"),
        cpu=_RESNET18_CPU,
        on_cpu=False,
    ),
    Row(
        name="small_sord",
        recipe="small",
        settings=(*_RESNET18, "loss.kind=sord"),
        cpu=_RESNET18_CPU,
        on_cpu=False,
    ),
)


def choose_rows(names: tuple[str, ...], *, use_gpu: bool, quick: bool) -> list[Row]:
    """The named rows, in the order of the table; without names, those that this kind of machine runs by default.

    Raises:
        ConfigError: there is no such row; the message lists them.
    """
    known = {row.name for row in ROWS}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"rows {', '.join(unknown)} are unknown; choose of {', '.join(row.name for row in ROWS)}")
    if names:
        return [row for row in ROWS if row.name in names]
    if quick:
        return [row for row in ROWS if row.name == "small_cnn"]
    return [row for row in ROWS if use_gpu or row.on_cpu]
