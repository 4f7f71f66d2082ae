"""The heads: each gives the distribution that its formula says, and stays finite wherever training may drive it."""

import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from bintally.config import Head
from bintally.heads import CountHead, OrderedThresholds

HEADS: tuple[Head, ...] = get_args(Head)
WIDTHS = {"softmax": 6, "corn": 5, "cumulative_link": 5, "regression": 2}


def head(kind: Head, num_classes: int = 6) -> CountHead:
    return CountHead(kind=kind, num_classes=num_classes)


def outputs_of(kind: Head, num_rows: int = 40, scale: float = 2.0) -> Tensor:
    """Random outputs that this head may get; those of cumulative_link fall from left to right."""
    generator = torch.Generator().manual_seed(5)
    if kind == "cumulative_link":
        score = scale * torch.randn(num_rows, 1, generator=generator)
        return OrderedThresholds(6)(score).detach()
    return scale * torch.randn(num_rows, WIDTHS[kind], generator=generator)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_formula(kind: Head, outputs: Tensor) -> np.ndarray:
    """The probabilities in float64, by the textbook formula instead of the stable one."""
    x = outputs.double().numpy()
    if kind == "softmax":
        return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    if kind == "regression":
        variance = 1 / np.log1p(np.exp(x[:, 1:]))
        location = 2.5 + x[:, :1] * variance
        density = np.exp(-0.5 * (np.arange(6) - location) ** 2 / variance)
        return np.asarray(density / density.sum(axis=1, keepdims=True))
    more = np.cumprod(sigmoid(x), axis=1) if kind == "corn" else sigmoid(x)
    edges = np.concatenate([np.ones((len(x), 1)), more, np.zeros((len(x), 1))], axis=1)
    return edges[:, :-1] - edges[:, 1:]


@pytest.mark.parametrize("kind", HEADS)
def test_the_distribution_is_that_of_the_formula(kind: Head) -> None:
    outputs = outputs_of(kind, scale=1.0)
    np.testing.assert_allclose(head(kind).log_probabilities(outputs).exp(), by_formula(kind, outputs), atol=2e-6)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("num_classes", [2, 3, 51])
def test_the_backbone_is_asked_for_what_the_head_reads(kind: Head, num_classes: int) -> None:
    asked = head(kind, num_classes)
    outputs = torch.zeros(4, asked.num_scores)
    if kind == "cumulative_link":
        outputs = OrderedThresholds(num_classes)(outputs)
    log_probs = asked.log_probabilities(outputs)
    assert log_probs.shape == (4, num_classes)
    torch.testing.assert_close(log_probs.logsumexp(dim=1), torch.zeros(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("size", [0.0, 30.0, 1e4, 1e30])
def test_extreme_outputs_give_finite_numbers_and_gradients(kind: Head, size: float) -> None:
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * (1 if kind == "cumulative_link" else WIDTHS[kind]))
    scores = (size * signs.reshape(len(signs), -1)).requires_grad_()
    outputs = OrderedThresholds(6)(scores) if kind == "cumulative_link" else scores
    log_probs = head(kind).log_probabilities(outputs)
    torch.testing.assert_close(log_probs.logsumexp(dim=1), torch.zeros(len(signs)), atol=1e-3, rtol=0)
    assert log_probs.isfinite().all()
    log_probs.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("kind", HEADS)
def test_bfloat16_outputs_are_read_in_float32(kind: Head) -> None:
    log_probs = head(kind).log_probabilities(outputs_of(kind).bfloat16())
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.logsumexp(dim=1), torch.zeros(40), atol=0.02, rtol=0)


@pytest.mark.parametrize("raw", [[0.0] * 5, [9.0, -80.0, -80.0, 3.0, 50.0]])
def test_thresholds_rise_whatever_was_learnt(raw: list[float]) -> None:
    thresholds = OrderedThresholds(6)
    with torch.no_grad():
        thresholds.raw.copy_(torch.tensor(raw))
    logits = thresholds(torch.zeros(1, 1))[0].tolist()
    assert all(before - after > 5e-4 for before, after in pairwise(logits))


def test_thresholds_begin_evenly_around_zero() -> None:
    assert OrderedThresholds(6)(torch.zeros(1, 1))[0].tolist() == pytest.approx([4, 2, 0, -2, -4], abs=1e-5)


def test_thresholds_are_subtracted_in_float32() -> None:
    """In bfloat16 a score of 300 would swallow the gaps, and counts between thresholds would become impossible."""
    logits = OrderedThresholds(6)(torch.full((1, 1), 300.0, dtype=torch.bfloat16))
    assert logits.dtype == torch.float32
    assert logits[0].diff().tolist() == pytest.approx([-2] * 4, abs=1e-3)


def test_the_location_of_regression_is_counted_from_the_middle() -> None:
    log_probs = head("regression").log_probabilities(torch.tensor([[0.0, 0.0], [3.0, 1.85], [-99.0, 0.0]]))
    assert log_probs.exp()[0].tolist() == pytest.approx(log_probs.exp()[0].flip(0).tolist())
    assert log_probs.argmax(dim=1).tolist()[1:] == [4, 0]


def test_the_precision_of_regression_narrows_the_distribution() -> None:
    narrow, wide = head("regression").log_probabilities(torch.tensor([[20.0, 40.0], [0.0, -5.0]])).exp()
    assert narrow[3] > 0.999
    assert wide.max() < 1.1 / 6
    assert math.isclose(float(wide.sum()), 1, rel_tol=1e-5)
