"""The counter: uint8 photos in, the raw outputs of a head out, and from them a distribution over the counts.

The model normalises its input itself, so that a photo takes the same way in training, evaluation and the server.
"""

from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from bintally.config import ModelConfig
from bintally.errors import ConfigError, WeightsError
from bintally.heads import CountHead, OrderedThresholds

ABID_MEAN: Final = (0.530, 0.450, 0.362)  # RGB statistics of ABID photos, for training from scratch
ABID_STD: Final = (0.169, 0.148, 0.111)
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

SMALL_CNN: Final = "small_cnn"
WEIGHTS_FILE: Final = "model.safetensors"  # of a checkpoint folder
_OF_A_COUNTER: Final = {"mean", "std"}  # beside the weights of the backbone
_POSITIONS: Final = "encoder.pos_embedding"
UNSUPPORTED: Final = {"googlenet", "inception_v3"}  # in training they return auxiliary logits beside the logits


class Counter(nn.Module):
    """A backbone behind the normalisation of its input, and how what it gives is read."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, head: CountHead, *, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.head = head
        self.backbone = backbone
        # What the head has to learn beside the backbone.
        self.link = OrderedThresholds(head.num_classes) if head.kind == "cumulative_link" else nn.Identity()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch outputs"]:
        """Raw outputs, as `bintally.heads` describes them; for the softmax head, a logit per count."""
        # NHWC bytes permuted to NCHW are channels_last already; the float copy keeps that layout.
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype).div(255)
        outputs: Tensor = self.link(self.backbone((pixels - self.mean) / self.std))
        return outputs

    def log_probabilities(self, outputs: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch classes"]:
        """Log-probability of each count, of what `forward` gave."""
        return self.head.log_probabilities(outputs)


class SmallCNN(nn.Module):
    """A residual network of 0.22 M parameters for 64-128 px photos on CPUs.

    Group norm instead of batch norm: the same numbers at any batch size and on any number of workers.
    """

    def __init__(self, num_scores: int, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 5, stride=2, padding=2, bias=False), nn.GroupNorm(4, widths[0]), nn.ReLU()
        )
        stages = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.stages = nn.Sequential(*(_ResidualStage(w_in, w_out) for w_in, w_out in stages))
        self.head = nn.Linear(2 * widths[-1], num_scores)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch scores"]:
        """Scores for the head to read."""
        features = self.stages(self.stem(pixels))
        # The mean carries how much there is, the maximum whether there is any.
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        scores: Tensor = self.head(pooled)
        return scores


class _ResidualStage(nn.Module):
    def __init__(self, w_in: int, w_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(w_in, w_out, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(4, w_out),
            nn.ReLU(),
            nn.Conv2d(w_out, w_out, 3, padding=1, bias=False),
            nn.GroupNorm(4, w_out),
        )
        self.skip = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(w_in, w_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def build_model(
    config: ModelConfig, *, num_classes: int, image_size: int | None = None, load_weights: bool = True
) -> Counter:
    """Build the counter that a config describes.

    Args:
        config: backbone, weights and head.
        num_classes: counts 0..num_classes-1.
        image_size: height and width of the photos in pixels. Only transformers of the vit and maxvit families are
            built for one size; None builds them for 224.
        load_weights: False leaves the random initialisation, for a state that is loaded afterwards.

    Raises:
        ConfigError: the backbone is unknown or not supported, or cannot take photos of this size.
        WeightsError: the weights cannot be found, downloaded or fitted.
    """
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config.weights else (ABID_MEAN, ABID_STD)
    head = CountHead(kind=config.head, num_classes=num_classes)
    counter = Counter(_build_backbone(config.backbone, head.num_scores, image_size), head, mean=mean, std=std)
    if config.weights and load_weights:
        _load_pretrained(counter, config.backbone, config.weights)
    return counter.to(memory_format=torch.channels_last)


def _build_backbone(name: str, num_scores: int, image_size: int | None) -> nn.Module:
    if name == SMALL_CNN:
        return SmallCNN(num_scores)
    import torchvision  # here, not at the top: it takes a second, and the small network does without

    known = [one for one in torchvision.models.list_models(module=torchvision.models) if one not in UNSUPPORTED]
    if name not in known:
        fault = "not supported, as it has auxiliary classifiers" if name in UNSUPPORTED else "unknown"
        raise ConfigError(f"model.backbone {name!r} is {fault}; choose {SMALL_CNN} or one of {', '.join(known)}")
    sized = {} if image_size is None else _size_arguments(name, image_size)
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_scores, **sized)
    except (AssertionError, ValueError) as error:  # of torchvision: the size does not divide into patches or windows
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.backbone {name!r} cannot take data.image_size {image_size}: {reason}") from None
    return model


def _size_arguments(name: str, image_size: int) -> dict[str, Any]:
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    return {}


def _load_pretrained(counter: Counter, name: str, weights: str) -> None:
    """Copy pretrained weights into all layers but a head of another shape; of a counter, how it normalises, too."""
    pretrained = _read_weights(name, weights)
    if pretrained.keys() >= _OF_A_COUNTER:
        counter.mean.copy_(pretrained["mean"])
        counter.std.copy_(pretrained["std"])
        prefix = "backbone."
        pretrained = {key.removeprefix(prefix): value for key, value in pretrained.items() if key.startswith(prefix)}
    backbone = counter.backbone
    own = backbone.state_dict()
    if _POSITIONS in own and _POSITIONS in pretrained:
        pretrained = _resize_positions(backbone, pretrained, weights)
    unfit = {key for key, value in own.items() if key not in pretrained or pretrained[key].shape != value.shape}
    head = {key for key in own if key.rsplit(".", 1)[0] == list(own)[-1].rsplit(".", 1)[0]}
    if not unfit <= head:
        example = min(unfit - head)
        raise WeightsError(
            f"weights {weights!r} do not fit model.backbone {name!r}: {len(unfit - head)} tensors"
            f" are missing or of another shape, as {example}"
        )
    backbone.load_state_dict({key: pretrained[key] for key in own if key not in unfit}, strict=False)


def _resize_positions(backbone: nn.Module, pretrained: dict[str, Tensor], weights: str) -> dict[str, Tensor]:
    """Interpolate the position embeddings of a vision transformer that was trained on photos of another size."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    try:
        resized: dict[str, Tensor] = interpolate_embeddings(backbone.image_size, backbone.patch_size, pretrained)
    except ValueError as error:  # no square of patches
        raise WeightsError(f"weights {weights!r}: their position embeddings cannot be resized: {error}") from None
    return resized


def _read_weights(backbone: str, weights: str) -> dict[str, Tensor]:
    path = Path(weights) / WEIGHTS_FILE if Path(weights).is_dir() else Path(weights)
    if path.is_file():
        return _read_weights_file(path)
    if backbone == SMALL_CNN:
        raise WeightsError(f"there are no weights at {weights!r}; {SMALL_CNN} has no published weights")
    import torchvision

    enum = torchvision.models.get_model_weights(backbone)
    if weights not in enum.__members__:
        names = ", ".join(enum.__members__)
        raise WeightsError(f"model.weights {weights!r} is neither a file nor one of {names}")
    try:
        state: dict[str, Tensor] = enum[weights].get_state_dict(progress=False, check_hash=True)
    except (OSError, HTTPException, RuntimeError, UnpicklingError) as error:  # RuntimeError: of another hash
        raise WeightsError(
            f"model.weights {weights} could not be downloaded ({error}). Without internet, download the file elsewhere"
            f" and give its path as model.weights, or train from scratch with model.weights null"
        ) from None
    return state


def _read_weights_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # a damaged pickle can raise anything
        raise WeightsError(f"{path} is not a readable weights file: {error}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict of tensors")
    return state
