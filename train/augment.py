"""Augmentations that keep the count: nothing that cuts items away."""

import torch
from jaxtyping import UInt8
from torch import Tensor


def augment(
    images: UInt8[Tensor, "batch height width 3"], generator: torch.Generator
) -> UInt8[Tensor, "batch height width 3"]:
    """Mirror half of the photos left to right and vary their brightness by up to 20 %.

    Args:
        images: on any device; not changed.
        generator: on the CPU, so that the same seed draws the same on every device.
    """
    size = images.shape[0]
    mirrored = torch.rand(size, generator=generator) < 0.5
    gain = 0.8 + 0.4 * torch.rand(size, generator=generator)
    mirrored, gain = mirrored.to(images.device), gain.to(images.device)
    flipped = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(dims=(2,)), images)
    return (flipped * gain.view(-1, 1, 1, 1)).clamp(0, 255).to(torch.uint8)
