"""The losses, against independent formulas: by hand in numpy, or by torch's own where it has one."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bintally.batch import PADDING
from bintally.config import Head, LossConfig, LossKind
from bintally.errors import ConfigError
from bintally.heads import CountHead, OrderedThresholds
from bintally.loss import class_weights, row_losses

KINDS: tuple[LossKind, ...] = get_args(LossKind)
ORDINAL: tuple[Head, ...] = ("corn", "cumulative_link", "regression")
CASES: list[tuple[Head, LossKind]] = [
    *[("softmax", kind) for kind in KINDS],
    *[(one, "cross_entropy") for one in ORDINAL],
]
WIDTHS: dict[Head, int] = {"softmax": 6, "corn": 5, "cumulative_link": 1, "regression": 2}
COUNTS = torch.tensor([0, 1, 2, 3, 4, 5, 5, 0, 3])


CROSS_ENTROPY = LossConfig()


def random_scores(head: Head = "softmax", scale: float = 2.0) -> Tensor:
    """What the backbone gives for the rows of COUNTS."""
    generator = torch.Generator().manual_seed(11)
    return (scale * torch.randn(len(COUNTS), WIDTHS[head], generator=generator)).requires_grad_()


def losses_of(
    scores: Tensor,
    counts: Tensor = COUNTS,
    *,
    head: Head = "softmax",
    loss: LossConfig = CROSS_ENTROPY,
    weights: Tensor | None = None,
) -> Tensor:
    outputs = OrderedThresholds(6)(scores) if head == "cumulative_link" else scores
    return row_losses(outputs, counts, CountHead(kind=head, num_classes=6), loss, weights)


# Formulas


def test_cross_entropy_is_torchs() -> None:
    logits = random_scores()
    torch.testing.assert_close(losses_of(logits), F.cross_entropy(logits, COUNTS, reduction="none"))


def test_sord_is_the_cross_entropy_with_soft_labels() -> None:
    logits = random_scores()
    log_p = np.log(torch.softmax(logits.detach().double(), dim=1).numpy())
    expected = []
    for row, count in enumerate(COUNTS.tolist()):
        soft = np.array([np.exp(-abs(level - count) / 0.7) for level in range(6)])
        expected.append(-(soft / soft.sum() * log_p[row]).sum())
    ours = losses_of(logits, loss=LossConfig(kind="sord", sord_tau=0.7))
    np.testing.assert_allclose(ours.detach(), expected, rtol=1e-5)


@pytest.mark.parametrize("tau", [0.02, 1e-6, 1e-300])
def test_sord_without_softness_is_cross_entropy(tau: float) -> None:
    logits = random_scores()
    torch.testing.assert_close(losses_of(logits, loss=LossConfig(kind="sord", sord_tau=tau)), losses_of(logits))


def test_focal_weighs_each_row_by_its_miss() -> None:
    logits = random_scores()
    p = torch.softmax(logits.detach().double(), dim=1).numpy()[np.arange(len(COUNTS)), COUNTS]
    ours = losses_of(logits, loss=LossConfig(kind="focal", focal_gamma=1.5))
    np.testing.assert_allclose(ours.detach(), -((1 - p) ** 1.5) * np.log(p), rtol=1e-4, atol=1e-7)


def test_focal_with_gamma_zero_is_cross_entropy() -> None:
    logits = random_scores()
    torch.testing.assert_close(losses_of(logits, loss=LossConfig(kind="focal", focal_gamma=0.0)), losses_of(logits))


def test_corn_adds_up_binary_cross_entropies_over_the_rows_that_got_so_far() -> None:
    logits = random_scores("corn")
    expected = torch.zeros(len(COUNTS))
    for k in range(5):
        subset = k <= COUNTS  # the task k asks "more than k?" of those that have at least k
        task = F.binary_cross_entropy_with_logits(logits[subset, k], (COUNTS[subset] > k).float(), reduction="none")
        expected[subset] = expected[subset] + task
    torch.testing.assert_close(losses_of(logits, head="corn"), expected)


def test_cumulative_link_is_the_likelihood_of_a_logistic_between_two_thresholds() -> None:
    score = random_scores("cumulative_link")
    edges = np.concatenate([[-np.inf], np.arange(-4, 5, 2), [np.inf]])  # where the thresholds begin
    s, y = score.detach().double().numpy()[:, 0], COUNTS.numpy()
    p = 1 / (1 + np.exp(s - edges[y + 1])) - 1 / (1 + np.exp(s - edges[y]))
    np.testing.assert_allclose(losses_of(score, head="cumulative_link").detach(), -np.log(p), rtol=1e-3)


def test_regression_is_the_likelihood_of_a_normal_at_the_counts() -> None:
    outputs = random_scores("regression", scale=1.0)
    scaled, raw = outputs.detach().double().numpy().T[:, :, None]
    variance = 1 / np.log1p(np.exp(raw))
    density = np.exp(-((np.arange(6) - 2.5 - scaled * variance) ** 2) / (2 * variance))
    p = density[np.arange(len(COUNTS)), COUNTS] / density.sum(axis=1)
    np.testing.assert_allclose(losses_of(outputs, head="regression").detach(), -np.log(p), rtol=1e-3)


# Rows that only fill up a batch


@pytest.mark.parametrize(("head", "kind"), CASES)
def test_padding_costs_nothing_and_pulls_at_nothing(head: Head, kind: LossKind) -> None:
    counts = COUNTS.clone()
    counts[[1, 4, 8]] = PADDING
    scores = random_scores(head)
    losses = losses_of(scores, counts, head=head, loss=LossConfig(kind=kind))
    losses.sum().backward()
    assert scores.grad is not None
    without = losses_of(scores, head=head, loss=LossConfig(kind=kind))
    padded = counts == PADDING
    assert torch.equal(losses[padded], torch.zeros(3))
    assert torch.equal(losses[~padded], without[~padded])
    assert torch.equal(scores.grad[padded], torch.zeros(3, WIDTHS[head]))
    assert (scores.grad[~padded].abs().sum(dim=1) > 0).all()


def test_a_batch_of_padding_alone() -> None:
    scores = random_scores()
    losses = losses_of(scores, torch.full_like(COUNTS, PADDING), weights=torch.ones(6))
    losses.sum().backward()
    assert scores.grad is not None
    assert not scores.grad.any()


# Numbers


@pytest.mark.parametrize(("head", "kind"), CASES)
@pytest.mark.parametrize("size", [50.0, 1e4, 1e12])
def test_extreme_outputs_have_finite_losses_and_gradients(head: Head, kind: LossKind, size: float) -> None:
    scores = random_scores(head, scale=size)
    losses = losses_of(scores, head=head, loss=LossConfig(kind=kind, focal_gamma=0.5))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize(("head", "kind"), CASES)
def test_bfloat16_outputs_have_a_float32_loss(head: Head, kind: LossKind) -> None:
    losses = losses_of(random_scores(head).bfloat16(), head=head, loss=LossConfig(kind=kind))
    assert losses.dtype == torch.float32


# Weights


def test_weights_are_the_inverse_shares_and_weigh_one_on_average() -> None:
    histogram = torch.tensor([8735, 37049, 69241, 81107, 72496, 56107])
    weights = class_weights(histogram)
    assert float((weights.double() * histogram).sum() / histogram.sum()) == pytest.approx(1)
    assert float(weights[0] / weights[3]) == pytest.approx(81107 / 8735)


def test_each_row_is_weighed_by_its_count() -> None:
    logits, weights = random_scores(), torch.tensor([4.0, 2.0, 1.0, 1.0, 0.5, 0.25])
    torch.testing.assert_close(losses_of(logits, weights=weights), losses_of(logits) * weights[COUNTS])


def test_a_count_without_rows_has_no_weight() -> None:
    with pytest.raises(ConfigError, match=r"loss\.class_weights: no training row has the count 0, 4,"):
        class_weights(torch.tensor([0, 5, 5, 5, 0, 5]))
