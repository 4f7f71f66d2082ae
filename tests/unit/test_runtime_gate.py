"""The gate of runtimes: what may be used, what is chosen, and networks that really pass or fail it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bintally.checkpoint import Checkpoint
from bintally.config import ModelConfig, Recipe
from bintally.errors import ConfigError
from bintally.heads import CountHead
from bintally.model import Counter, build_model
from bintally.onnx_graph import Answer
from bintally.recipes import smoke
from bintally.runtime_record import RuntimeName
from data.args import SourceArgs
from train.accelerate import AccelerateArgs
from train.runtime_gate import Trial, judge, make_trial
from train.runtimes import Graphs, count_by_each, format_trials, make_graphs, make_record, measure_cpu_ms

NO_TIME = {1: 1.0}


def trial(ms: float, *, accuracy: float = 0.8, agreement: float = 1.0, difference: float = 0.0) -> Trial:
    return Trial(
        accuracy=accuracy,
        agreement=agreement,
        max_difference=difference,
        cpu_ms={1: float(ms), 8: float(ms)},
        num_bytes=1,
    )


def trials(eager: Trial, fp32: Trial, int8: Trial) -> dict[RuntimeName, Trial]:
    return {"eager": eager, "onnx_fp32": fp32, "onnx_int8": int8}


# Decisions


@pytest.mark.parametrize(
    ("fp32_ms", "int8_ms", "chosen"),
    [
        (5, 2, "onnx_int8"),
        (5, 5, "onnx_fp32"),  # of equally fast ones the exacter
        (5, 6, "onnx_fp32"),
        (10, 10, "eager"),
        (12, 11, "eager"),
        (12, 9, "onnx_int8"),
    ],
)
def test_the_fastest_of_those_that_pass_is_chosen(fp32_ms: float, int8_ms: float, chosen: str) -> None:
    verdict = judge(trials(trial(10), trial(fp32_ms), trial(int8_ms, agreement=0.99)), {})
    assert (verdict.chosen, verdict.refused) == (chosen, {})


@pytest.mark.parametrize(
    ("int8", "reason"),
    [
        ({"agreement": 0.9899}, "99.0%"),
        ({"agreement": 0.5}, "agrees with PyTorch on 50.0%"),
        ({"accuracy": 0.7969}, "loses 0.31 points"),
    ],
)
def test_8_bits_that_count_otherwise_are_refused(int8: dict[str, float], reason: str) -> None:
    verdict = judge(trials(trial(10), trial(5), trial(1, **int8)), {})
    assert verdict.chosen == "onnx_fp32"
    assert reason in verdict.refused["onnx_int8"]
    assert reason in verdict.why


@pytest.mark.parametrize("int8", [{"agreement": 0.99}, {"accuracy": 0.797}, {"accuracy": 0.9}, {"difference": 0.2}])
def test_the_limits_themselves_pass(int8: dict[str, float]) -> None:
    assert judge(trials(trial(10), trial(5), trial(1, **int8)), {}).chosen == "onnx_int8"


def test_a_float32_graph_has_to_give_the_same_probabilities() -> None:
    verdict = judge(trials(trial(10), trial(1, difference=2e-4), trial(1, agreement=0.0)), {})
    assert verdict.chosen == "eager"
    assert list(verdict.refused) == ["onnx_fp32", "onnx_int8"]
    assert "0.0002 off" in verdict.why


def test_what_could_not_be_made_is_told() -> None:
    verdict = judge({"eager": trial(10)}, {"onnx_fp32": "no such operator", "onnx_int8": "nor this"})
    assert verdict.chosen == "eager"
    assert "onnx_fp32 refused: no such operator; onnx_int8 refused: nor this" in verdict.why


# What is compared


def one_hot(counts: list[int]) -> np.ndarray:
    return np.eye(6, dtype=np.float32)[counts]


def test_a_trial_counts_photos() -> None:
    made = make_trial(
        one_hot([0, 1, 2, 4]), one_hot([0, 1, 2, 3]), np.array([0, 1, 5, 4]), cpu_ms={1: 2.0, 8: 4.0}, num_bytes=7
    )
    assert (made.accuracy, made.agreement, made.max_difference, made.mean_ms) == (0.75, 0.75, 1.0, 3.0)


def test_nan_is_wrong_even_where_its_place_is_right() -> None:
    answers = one_hot([0, 1])
    answers[0] = np.nan
    made = make_trial(answers, one_hot([0, 1]), np.array([0, 1]), cpu_ms=NO_TIME, num_bytes=0)
    assert (made.accuracy, made.agreement, made.max_difference) == (0.5, 0.5, 1.0)


# Networks


def photos(num: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def checkpoint_of(model: Counter, recipe: Recipe | None = None) -> Checkpoint:
    return Checkpoint(model=model.eval(), recipe=recipe or smoke(), metrics={}, version="0123456789ab")


def plain_network(spread: float) -> Counter:
    """Two convolutions, whose numbers between them differ by `spread` in size, without a change of what comes out."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=2)
    last = nn.Linear(8, 6)
    with torch.no_grad():
        first.weight[0].mul_(spread)
        first.bias[0].mul_(spread)
        second.weight[:, 0].div_(spread)
        last.weight.mul_(20)
    backbone = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    return Counter(backbone, CountHead(kind="softmax", num_classes=6), mean=(0.5,) * 3, std=(0.2,) * 3)


def tried(checkpoint: Checkpoint) -> tuple[dict[RuntimeName, Trial], Graphs]:
    graphs = make_graphs(checkpoint, photos(32))
    answers: dict[RuntimeName, Answer] = {"eager": checkpoint.predict, **graphs.answers}
    shown = [(photos(100, seed=seed), np.zeros(100, np.int64)) for seed in (1, 2)]
    predicted, counts = count_by_each(answers, shown)
    assert len(counts) == len(predicted["eager"]) == 200
    return {
        name: make_trial(one, predicted["eager"], counts, cpu_ms=NO_TIME, num_bytes=0)
        for name, one in predicted.items()
    }, graphs


def test_a_network_whose_numbers_do_not_fit_into_8_bits_fails_the_gate() -> None:
    even, _ = tried(checkpoint_of(plain_network(spread=1)))
    assert even["onnx_int8"].agreement > 0.95
    uneven, graphs = tried(checkpoint_of(plain_network(spread=1e5)))
    assert uneven["onnx_fp32"].max_difference < 1e-4
    assert uneven["onnx_int8"].agreement < 0.9
    verdict = judge(uneven | {"onnx_int8": replace(uneven["onnx_int8"], cpu_ms={1: 0.1})}, graphs.failed)
    assert verdict.chosen != "onnx_int8"
    record = make_record("0123456789ab", graphs, uneven, verdict, num_photos=(32, 200))
    assert list(record.graphs) == ["onnx_fp32"], "what fails is not stored"
    assert "agrees with PyTorch" in record.refused["onnx_int8"]


class Deciding(nn.Module):
    """Takes another way for dark photos, which a graph without branches cannot."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        means = pixels.mean(dim=(2, 3)).repeat(1, 2)
        return -means if pixels.sum() < 0 else means


def test_a_network_that_cannot_be_exported_stays_with_pytorch() -> None:
    model = Counter(Deciding(), CountHead(kind="softmax", num_classes=6), mean=(0.5,) * 3, std=(0.2,) * 3)
    measured, graphs = tried(checkpoint_of(model))
    assert list(measured) == ["eager"]
    verdict = judge(measured, graphs.failed)
    assert verdict.chosen == "eager"
    assert "onnx_fp32 refused: " in verdict.why
    assert "\n" not in verdict.why


def test_small_cnn_is_faster_by_onnx_runtime() -> None:
    model = build_model(ModelConfig(backbone="small_cnn"), num_classes=6)
    checkpoint = checkpoint_of(model)
    graphs = make_graphs(checkpoint, photos(16))
    answers: dict[RuntimeName, Answer] = {"eager": checkpoint.predict, **graphs.answers}
    cpu_ms = measure_cpu_ms(answers, photos(8))
    assert {name: list(by_size) for name, by_size in cpu_ms.items()} == {name: [1, 8] for name in answers}
    assert 0 < cpu_ms["onnx_fp32"][1] < cpu_ms["eager"][1]


def test_the_table_has_a_line_for_each() -> None:
    lines = format_trials(trials(trial(10), trial(5), trial(1, agreement=0.5)), 2_000).splitlines()
    assert lines[0] == "on 2,000 val photos:"
    assert [line.split()[0] for line in lines[1:]] == ["runtime", "eager", "onnx_fp32", "onnx_int8"]
    assert lines[-1].split()[1:] == ["80.00%", "50.00%", "1.000", "1.000", "0.00"]


# Flags


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"max_count": 6}, "max_count 6"),
        ({"image_size": 64}, "those of the checkpoint"),
        ({"resize": "letterbox"}, "those of the checkpoint"),
    ],
)
def test_photos_that_the_server_would_not_make_are_refused(flags: dict[str, Any], names: str) -> None:
    args = AccelerateArgs(checkpoint="x", bucket=SourceArgs(source="file:///bins", **flags))
    with pytest.raises(ConfigError, match=names):
        args.resolve(smoke())


def test_fewer_counts_than_the_model_knows_are_fine() -> None:
    args = AccelerateArgs(checkpoint="x", bucket=SourceArgs(max_count=3))
    assert args.resolve(smoke()).max_count == 3
