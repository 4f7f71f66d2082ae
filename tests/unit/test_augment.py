"""Augmentation: what may change in a photo, and what may not."""

import pytest
import torch
from torch import Tensor

from train.augment import augment


def photos(num: int = 64, height: int = 12, width: int = 16, top: int = 200) -> Tensor:
    """Random photos without highlights, so that no gain saturates them."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(20, top, (num, height, width, 3), dtype=torch.uint8, generator=generator)


def run(images: Tensor, seed: int = 0) -> Tensor:
    return augment(images, torch.Generator().manual_seed(seed))


def gain_of(before: Tensor, after: Tensor) -> float | None:
    """The one factor that makes `after` of `before`, or None if there is none."""
    gain = float((after.double() + 0.5).sum() / before.double().sum())
    return gain if (before.double() * gain - after.double()).abs().max() <= 2 else None


@pytest.mark.parametrize("shape", [(1, 16, 16), (5, 12, 20), (0, 8, 8)])
def test_shape_and_type_stay(shape: tuple[int, int, int]) -> None:
    images = photos(*shape)
    out = run(images)
    assert out.shape == images.shape
    assert out.dtype == torch.uint8


def test_each_photo_is_itself_or_its_mirror_image_up_to_brightness() -> None:
    images = photos()
    gains, num_mirrored = [], 0
    for before, after in zip(images, run(images), strict=True):
        same, mirrored = gain_of(before, after), gain_of(before.flip(1), after)
        assert (same is None) != (mirrored is None)
        gains.append(same or mirrored or 0.0)
        num_mirrored += mirrored is not None
    assert 16 <= num_mirrored <= 48
    assert all(0.79 <= gain <= 1.21 for gain in gains)
    assert min(gains) < 0.9 < 1.1 < max(gains)


def test_the_input_is_not_changed() -> None:
    images = photos()
    before = images.clone()
    run(images)
    assert torch.equal(images, before)


def test_the_same_seed_gives_the_same_photos() -> None:
    assert torch.equal(run(photos()), run(photos()))
    assert not torch.equal(run(photos()), run(photos(), seed=1))


def test_one_generator_draws_anew_for_each_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(augment(photos(), generator), augment(photos(), generator))


def test_highlights_saturate_and_do_not_wrap_around() -> None:
    white = torch.full((64, 4, 4, 3), 255, dtype=torch.uint8)
    assert run(white).min() >= 203
    assert (run(white) == 255).any()


def test_black_stays_black() -> None:
    assert run(torch.zeros(8, 4, 4, 3, dtype=torch.uint8)).max() == 0
