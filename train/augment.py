"""Augmentations that keep the count: nothing that cuts items away.

What is done to each photo is drawn for the whole global batch, on the CPU, and each worker takes the part of its rows.
So a photo comes out the same however many workers share the batch, and on any device up to rounding.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from bintally.config import AugmentConfig
from bintally.image import BORDER_GREY


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What happens to each photo of a batch; on the CPU."""

    mirrored: Bool[Tensor, " batch"]
    """Left to right."""
    scale: Float[Tensor, " batch"]
    """Its size, as a share of the square; 1 leaves it."""
    place: Float[Tensor, "batch 2"]
    """Where it then lies, across and down, from 0 (left, top) to 1 (right, bottom)."""
    blurred: Bool[Tensor, " batch"]
    """By a kernel of five pixels."""
    gain: Float[Tensor, "batch 3"]
    """Factor of red, green and blue."""
    contrast: Float[Tensor, " batch"]
    """Factor of the distance from the photo's mean."""

    def rows(self, part: slice) -> "Draws":
        """Those of a part of the batch, as of one worker."""
        return Draws(**{one.name: getattr(self, one.name)[part] for one in fields(self)})


def draw(config: AugmentConfig, num_rows: int, generator: torch.Generator) -> Draws:
    """Draw what happens to each photo of a global batch.

    Every kind takes its numbers, also when it is off: so switching one on leaves the others as they were.

    Args:
        config: how far photos may be varied.
        num_rows: of the global batch.
        generator: on the CPU; alike on all workers.
    """
    uniform = torch.rand(num_rows, 10, generator=generator)
    varied = 2 * uniform - 1  # evenly in -1..1
    return Draws(
        mirrored=(uniform[:, 0] < 0.5) & config.flip,
        scale=1 - config.shrink * uniform[:, 1],
        place=uniform[:, 2:4],
        blurred=uniform[:, 4] < config.blur,
        gain=(1 + config.brightness * varied[:, 5:6]) * (1 + config.colour * varied[:, 6:9]),
        contrast=1 + config.contrast * varied[:, 9],
    )


def augment(images: UInt8[Tensor, "batch height width 3"], draws: Draws) -> UInt8[Tensor, "batch height width 3"]:
    """Do to each photo what was drawn for it.

    Args:
        images: on any device; not changed.
        draws: one for each of the photos. What no photo needs costs nothing.
    """
    if draws.mirrored.any():
        mirrored = draws.mirrored.to(images.device).view(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(dims=(2,)), images)
    moves = bool((draws.scale != 1).any() or draws.blurred.any())
    recolours = bool((draws.gain != 1).any() or (draws.contrast != 1).any())
    if not (moves or recolours):
        return images
    pixels = _move(images, draws) if moves else images
    if recolours:
        pixels = _recolour(pixels, draws.gain, draws.contrast)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _move(images: Tensor, draws: Draws) -> Tensor:
    """What mixes neighbouring pixels, which needs the channels before the pixels."""
    pixels = images.permute(0, 3, 1, 2).float()
    if (draws.scale != 1).any():
        pixels = _shrink(pixels, draws.scale, draws.place)
    if draws.blurred.any():
        pixels = _blur(pixels, draws.blurred)
    return pixels.permute(0, 2, 3, 1).contiguous()


def _shrink(pixels: Tensor, scale: Tensor, place: Tensor) -> Tensor:
    """Bilinear, which skips no pixel at scales of a half or more; grey around, as beside a letterboxed photo."""
    # In grid_sample's coordinates the square spans -1..1; the photo's middle lies where it still fits in as a whole.
    middle = (1 - scale)[:, None] * (2 * place - 1)
    theta = torch.zeros(len(scale), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = -middle / scale[:, None]
    grid = F.affine_grid(theta.to(pixels.device), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels - BORDER_GREY, grid, padding_mode="zeros", align_corners=False) + BORDER_GREY


def _blur(pixels: Tensor, blurred: Tensor) -> Tensor:
    rows = blurred.nonzero()[:, 0].to(pixels.device)
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=pixels.device) / 16
    padded = F.pad(pixels[rows], (2, 2, 2, 2), mode="replicate")
    across = F.conv2d(padded, kernel.expand(3, 1, 1, 5), groups=3)
    return pixels.index_copy(0, rows, F.conv2d(across, kernel[:, None].expand(3, 1, 5, 1), groups=3))


def _recolour(pixels: Tensor, gain: Tensor, contrast: Tensor) -> Tensor:
    pixels = pixels * gain.to(pixels.device)[:, None, None]
    if (contrast == 1).all():
        return pixels
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return mean + contrast.to(pixels.device).view(-1, 1, 1, 1) * (pixels - mean)
