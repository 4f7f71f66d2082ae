"""Configuration as values: what determines a result, one frozen dataclass per concern.

A Recipe is everything that a run's numbers depend on. Resources (workers, GPUs, folders) are arguments of the commands.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bintally.errors import ConfigError
from bintally.source_config import DataConfig

Head = Literal["softmax", "corn", "cumulative_link", "regression"]
LossKind = Literal["cross_entropy", "sord", "focal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which network."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    backbone: str
    """`small_cnn`, or a classification model of torchvision, as `resnet34`."""
    weights: str | None = None
    """None trains from scratch; else a name of the backbone's torchvision enum, a file, or a checkpoint of it."""
    head: Head = "softmax"
    """What the outputs mean: softmax (a logit per count), corn and cumulative_link (ordinal: logits of "more than k"),
    or regression (a location with a fitted spread)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """What is minimised. The ordinal heads and regression have their own likelihood, so only softmax has a choice."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    kind: LossKind = "cross_entropy"
    """cross_entropy; sord (soft ordinal labels: neighbouring counts are half right); focal (hard photos weigh more)."""
    sord_tau: float = 0.5
    """Of sord: the soft label of count j is proportional to exp(-|j - y| / tau)."""
    focal_gamma: float = 2.0
    """Of focal: each row weighs (1 - p)^gamma; 0 is cross-entropy."""
    class_weights: bool = False
    """Weigh each row by the inverse share of its count in the training split; the mean weight is 1."""

    def __post_init__(self) -> None:
        if not 0 < self.sord_tau < math.inf:
            raise ConfigError(f"loss.sord_tau must be finite and above 0, not {self.sord_tau}")
        if not 0 <= self.focal_gamma < math.inf:
            raise ConfigError(f"loss.focal_gamma must be finite and at least 0, not {self.focal_gamma}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """How training photos are varied; nothing here cuts items away."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    flip: bool = True
    """Mirror half of the photos left to right."""
    brightness: float = 0.2
    """Brightness varies by up to this share."""
    contrast: float = 0.0
    """Contrast varies by up to this share."""
    colour: float = 0.0
    """Each of red, green and blue varies by up to this share."""
    blur: float = 0.0
    """Share of the photos that are blurred a little."""
    shrink: float = 0.0
    """Photos are shrunk by up to this share, at most 0.5, with grey around."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "colour", "blur", "shrink"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} must lie in 0..1, not {getattr(self, name)}")
        if self.shrink > 0.5:  # beyond that, items could fall between the sampled pixels
            raise ConfigError(f"augment.shrink must be at most 0.5, not {self.shrink}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """How the weights are fitted."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    lr: float
    """Peak learning rate, whatever the batch size."""
    global_batch_size: int
    """Images per optimiser step over all workers."""
    weight_decay: float = 0.05
    """Weight decay, decoupled with adamw and part of the gradient with sgd; biases and norms have none."""
    warmup_fraction: float = 0.1
    """Share of all steps in which the learning rate rises from zero."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum 0.9."""
    schedule: Literal["cosine", "step", "plateau", "constant"] = "cosine"
    """After the warm-up: along a cosine to zero; times `step_factor` every `step_epochs` epochs; times it when the
    validation NLL has not improved for `step_epochs` epochs; or constant."""
    step_epochs: int = 10
    """Of step and plateau."""
    step_factor: float = 0.1
    """Of step and plateau."""
    trained: Literal["all", "head", "staged"] = "all"
    """Which layers: all, the head alone (the backbone stays as loaded), or the head first and then, each
    `stage_epochs` epochs, one more stage of the backbone from the back."""
    stage_epochs: int = 1
    """Of staged."""
    layer_decay: float = 1.0
    """Learning rate of each stage of the backbone as a share of that of the stage behind it."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; None does not clip."""
    ema_decay: float | None = None
    """Score and keep an exponential moving average of the weights with this decay (it warms up); None does not."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < 100:
            raise ConfigError(f"optim.lr must lie between 0 and 100, not {self.lr}")
        if self.global_batch_size < 1:
            raise ConfigError(f"optim.global_batch_size must be at least 1, not {self.global_batch_size}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"optim.weight_decay must be finite and at least 0, not {self.weight_decay}")
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(f"optim.warmup_fraction must lie in [0, 1), not {self.warmup_fraction}")
        if self.step_epochs < 1 or self.stage_epochs < 1:
            raise ConfigError(
                f"optim.step_epochs and stage_epochs must be at least 1, not {self.step_epochs} and {self.stage_epochs}"
            )
        if not 0 < self.step_factor < 1:
            raise ConfigError(f"optim.step_factor must lie between 0 and 1, not {self.step_factor}")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optim.layer_decay must lie above 0 and at most at 1, not {self.layer_decay}")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ConfigError(f"optim.clip_norm must be finite and above 0, not {self.clip_norm}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"optim.ema_decay must lie between 0 and 1, not {self.ema_decay}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """How the arithmetic is done. Changes speed and memory, and numbers only by rounding."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs what autocast deems safe in bfloat16; weights and loss stay float32."""
    compile: bool = False
    """torch.compile the network: some minutes at the start, faster steps after."""
    micro_batch_size: int | None = None
    """Photos that one worker takes through the network at once, accumulating gradients; None takes all it has."""
    fit_memory: bool = False
    """Halve the micro-batch until it fits into every worker's memory. Batch norms see fewer photos at once then."""

    def __post_init__(self) -> None:
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ConfigError(f"compute.micro_batch_size must be at least 1, not {self.micro_batch_size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that the numbers of a run depend on."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    name: str
    """The function in bintally/recipes.py that made it."""
    data: DataConfig
    """Which bins."""
    model: ModelConfig
    """Which network."""
    optim: OptimConfig
    """How it is fitted."""
    max_epochs: int
    """Epochs to train; also the length of the learning-rate schedule."""
    loss: LossConfig = LossConfig()
    """What is minimised."""
    augment: AugmentConfig = AugmentConfig()
    """How training photos are varied."""
    compute: ComputeConfig = ComputeConfig()
    """How the arithmetic is done."""
    patience: int | None = None
    """Stop when the validation NLL has not improved for so many epochs; None trains to the end."""
    small_first: tuple[tuple[int, int], ...] = ()
    """Progressive sizes, as ((9, 224), (13, 320)): until epoch 9 photos are shrunk to 224 px, until 13 to 320 px."""
    epoch_fraction: float = 1.0
    """Share of the training rows that one epoch visits: a fresh one each epoch until all were visited."""
    balanced: bool = False
    """Visit every count equally often in an epoch: rare ones several times, frequent ones in part."""
    allow_empty_counts: bool = False
    """Train even if a count has no training row, as 0 in lists of bins that hold something."""
    seed: int = 0
    """Seeds the weights and the order of the rows."""

    def __post_init__(self) -> None:
        if self.max_epochs < 1:
            raise ConfigError(f"max_epochs must be at least 1, not {self.max_epochs}")
        if not 0 < self.epoch_fraction <= 1:
            raise ConfigError(f"epoch_fraction must lie above 0 and at most at 1, not {self.epoch_fraction}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must lie in 0..2^32-1, not {self.seed}")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience must be at least 1, not {self.patience}")
        if list(self.small_first) != sorted(self.small_first) or not all(
            16 <= size <= self.data.image_size for _, size in self.small_first
        ):
            raise ConfigError(
                f"small_first must be rising (epoch, pixels) pairs of 16..{self.data.image_size} px,"
                f" not {self.small_first}"
            )
        if self.small_first and self.model.backbone.startswith(("vit_", "maxvit_")):
            raise ConfigError(
                f"small_first needs a network that takes photos of any size; model.backbone {self.model.backbone}"
                " is built for one"
            )
        if self.model.head != "softmax" and (self.loss.kind != "cross_entropy" or self.loss.class_weights):
            raise ConfigError(f"loss.kind and class_weights need model.head softmax, not {self.model.head}")

    def size_in(self, epoch: int) -> int:
        """Height and width in pixels of the photos that the network sees in an epoch (from 1)."""
        return next((size for until, size in self.small_first if epoch <= until), self.data.image_size)


_RECIPE = TypeAdapter(Recipe)


def recipe_from_dict(values: object, *, origin: str = "recipe") -> Recipe:
    """Check plain values, as JSON gives them, and make a Recipe of them.

    Raises:
        ConfigError: a field is unknown, missing or out of range; the message names it and the origin.
    """
    try:
        return _RECIPE.validate_json(json.dumps(values))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{origin}: {faults}") from None


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with other values of single fields.

    Args:
        recipe: to change.
        settings: as `optim.schedule=step` or `data.image_size=160`; the value is JSON, or a bare word for text.

    Raises:
        ConfigError: a setting is not of that form, a field is unknown, or a value is out of range.
    """
    values = asdict(recipe)
    for setting in settings:
        name, equals, text = setting.partition("=")
        *sections, field = name.split(".")
        place: Any = values
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not equals or not isinstance(place, dict) or field not in place:
            raise ConfigError(f"set must be FIELD=VALUE with a field of a recipe, as optim.lr=0.01, not {setting!r}")
        try:
            place[field] = json.loads(text)
        except ValueError:
            place[field] = text
    return recipe_from_dict(values, origin="set") if settings else recipe


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file, as `best.json`.

    Raises:
        ConfigError: the file cannot be read, is not JSON, or is not a recipe.
    """
    try:
        return parse_recipe(path.read_bytes(), origin=str(path))
    except FileNotFoundError:
        raise ConfigError(f"no recipe file at {path}") from None
    except OSError as error:
        raise ConfigError(f"recipe file {path} cannot be read: {error}") from None


def parse_recipe(content: bytes, *, origin: str) -> Recipe:
    """The recipe of such a file's content.

    Raises:
        ConfigError: it is not JSON, or not a recipe; the message names the origin.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{origin} is not JSON: {error}") from None
    return recipe_from_dict(values, origin=origin)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as JSON that `read_recipe` takes."""
    path.write_text(json.dumps(asdict(recipe), indent=2) + "\n")
