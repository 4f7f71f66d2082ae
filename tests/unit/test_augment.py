"""Augmentation: what may change in a photo, and what may not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bintally.config import AugmentConfig
from bintally.image import BORDER_GREY
from train.augment import Draws, augment, draw

OFF = {"flip": False, "brightness": 0.0}
EVERYTHING = {"flip": True, "brightness": 0.2, "contrast": 0.2, "colour": 0.1, "blur": 0.4, "shrink": 0.3}


def photos(num: int = 64, height: int = 12, width: int = 16, top: int = 200) -> Tensor:
    """Random photos without highlights, so that no gain saturates them."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(20, top, (num, height, width, 3), dtype=torch.uint8, generator=generator)


def draws_of(num_rows: int = 64, seed: int = 0, **config: Any) -> Draws:  # noqa: ANN401  # fields by name
    return draw(AugmentConfig(**(OFF | config)), num_rows, torch.Generator().manual_seed(seed))


def run(images: Tensor, seed: int = 0, **config: Any) -> Tensor:  # noqa: ANN401  # fields by name
    return augment(images, draws_of(len(images), seed, **config))


def factor_of(before: Tensor, after: Tensor) -> float | None:
    """The one factor that makes `after` of `before`, or None if there is none."""
    factor = float(after.double().sum() / before.double().sum())
    return factor if (before.double() * factor - after.double()).abs().max() <= 1.5 else None


# Whatever is done


@pytest.mark.parametrize("shape", [(1, 16, 16), (5, 12, 20), (0, 8, 8)])
@pytest.mark.parametrize("config", [{}, {"flip": True}, EVERYTHING])
def test_shape_type_and_input_stay(shape: tuple[int, int, int], config: dict[str, Any]) -> None:
    images = photos(*shape)
    before = images.clone()
    out = run(images, **config)
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert out.is_contiguous(), "the network takes the channels last"
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", EVERYTHING)
def test_each_kind_changes_something(kind: str) -> None:
    assert not torch.equal(run(photos(), **{kind: EVERYTHING[kind]}), photos())


def test_switched_off_it_is_the_identity() -> None:
    assert torch.equal(run(photos()), photos())


def test_the_same_seed_gives_the_same_photos() -> None:
    assert torch.equal(run(photos(), **EVERYTHING), run(photos(), **EVERYTHING))
    assert not torch.equal(run(photos(), **EVERYTHING), run(photos(), seed=1, **EVERYTHING))


def test_one_generator_draws_anew_for_each_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    one, another = (draw(AugmentConfig(), 64, generator) for _ in range(2))
    assert not torch.equal(one.gain, another.gain)


@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_that_share_a_batch_make_the_photos_that_one_makes(num_workers: int) -> None:
    images, draws = photos(), draws_of(**EVERYTHING)
    per_worker = len(images) // num_workers
    parts = [slice(rank * per_worker, (rank + 1) * per_worker) for rank in range(num_workers)]
    shared = [augment(images[part], draws.rows(part)) for part in parts]
    assert torch.equal(torch.cat(shared), augment(images, draws))


def test_switching_one_kind_on_leaves_the_others_as_they_were() -> None:
    before, after = draws_of(flip=True, contrast=0.2), draws_of(flip=True, contrast=0.2, blur=0.5, shrink=0.3)
    assert torch.equal(before.mirrored, after.mirrored)
    assert torch.equal(before.contrast, after.contrast)


# Each kind


def test_each_photo_is_itself_or_its_mirror_image_up_to_brightness() -> None:
    images = photos()
    factors, num_mirrored = [], 0
    for before, after in zip(images, run(images, flip=True, brightness=0.2), strict=True):
        same, mirrored = factor_of(before, after), factor_of(before.flip(1), after)
        assert (same is None) != (mirrored is None)
        factors.append(same or mirrored or 0.0)
        num_mirrored += mirrored is not None
    assert 16 <= num_mirrored <= 48
    assert all(0.79 <= factor <= 1.21 for factor in factors)
    assert min(factors) < 0.9 < 1.1 < max(factors)


def test_colours_vary_each_for_itself() -> None:
    before, after = photos(), run(photos(), colour=0.1)
    factors = [[factor_of(b[..., c], a[..., c]) for c in range(3)] for b, a in zip(before, after, strict=True)]
    assert all(factor is not None and 0.89 <= factor <= 1.11 for row in factors for factor in row)
    assert sum(max(row) - min(row) > 0.03 for row in factors) > 32  # type: ignore[type-var, operator]  # none is None


def test_contrast_varies_around_the_mean_of_the_photo() -> None:
    before = photos(top=160).double()
    after = run(photos(top=160), contrast=0.2).double()
    torch.testing.assert_close(after.mean(dim=(1, 2, 3)), before.mean(dim=(1, 2, 3)), atol=0.5, rtol=0)
    spread = after.std(dim=(1, 2, 3)) / before.std(dim=(1, 2, 3))
    assert 0.79 < spread.min() < 0.85
    assert 1.15 < spread.max() < 1.21


def test_highlights_saturate_and_do_not_wrap_around() -> None:
    white = torch.full((64, 4, 4, 3), 255, dtype=torch.uint8)
    out = run(white, brightness=0.2)
    assert out.min() >= 203
    assert (out == 255).any()


def test_black_stays_black_under_any_light() -> None:
    assert run(torch.zeros(8, 4, 4, 3, dtype=torch.uint8), brightness=0.2, colour=0.2).max() == 0


def test_a_share_of_the_photos_is_blurred() -> None:
    images = photos(256)
    out = run(images, blur=0.25)
    changed = (out != images).flatten(1).any(dim=1)
    assert 40 < int(changed.sum()) < 90
    assert (out[changed].double().var(dim=(1, 2)) < 0.5 * images[changed].double().var(dim=(1, 2))).all()


def test_a_blurred_point_spreads_evenly_and_loses_no_light() -> None:
    point = torch.zeros(1, 9, 9, 3, dtype=torch.uint8)
    point[:, 4, 4] = 255
    out = run(point, blur=1.0)[0, :, :, 0].double()
    row = torch.tensor([0, 0, 1, 4, 6, 4, 1, 0, 0]).double() / 16
    torch.testing.assert_close(out, (255 * row[:, None] * row).round())


def test_a_flat_photo_stays_flat_when_blurred() -> None:
    flat = torch.full((2, 8, 8, 3), 200, dtype=torch.uint8)
    assert torch.equal(run(flat, blur=1.0), flat)


# Nothing is cut away


def shrunk_frame(seed: int) -> Tensor:
    """A photo with a white frame of 4 pixels, shrunk; True where it is far from grey."""
    image = torch.full((1, 64, 64, 3), BORDER_GREY, dtype=torch.uint8)
    for edge in (image[:, :4], image[:, -4:], image[:, :, :4], image[:, :, -4:]):
        edge[:] = 255
    return run(image, seed, shrink=0.4)[0, :, :, 0] > 180


@pytest.mark.parametrize("seed", range(12))
def test_a_shrunk_photo_lies_in_the_square_with_all_its_edges(seed: int) -> None:
    scale = float(draws_of(1, seed, shrink=0.4).scale[0])
    white = shrunk_frame(seed)
    rows, columns = white.any(dim=1).nonzero()[:, 0], white.any(dim=0).nonzero()[:, 0]
    for lines in (rows, columns):
        assert int(lines.max() - lines.min()) + 1 == pytest.approx(64 * scale, abs=1.5)
    frame = white[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    for edge in (frame[1], frame[-2], frame[:, 1], frame[:, -2]):
        assert edge.all(), "an edge of the frame is missing"
    assert 0.6 <= scale <= 1


def test_shrunk_photos_lie_all_over_the_square() -> None:
    tops = torch.tensor([int(shrunk_frame(seed).any(dim=1).nonzero()[0]) for seed in range(40)])
    assert tops.min() <= 1
    assert tops.max() >= 12


def test_around_a_shrunk_photo_is_the_grey_of_letterboxes() -> None:
    draws = Draws(
        mirrored=torch.tensor([False]),
        scale=torch.tensor([0.5]),
        place=torch.tensor([[1.0, 0.0]]),
        blurred=torch.tensor([False]),
        gain=torch.ones(1, 3),
        contrast=torch.ones(1),
    )
    out = augment(torch.full((1, 8, 8, 3), 250, dtype=torch.uint8), draws)[0, :, :, 0]
    expected = torch.full((8, 8), BORDER_GREY, dtype=torch.uint8)
    expected[:4, 4:] = 250
    assert torch.equal(out, expected)
