"""The averaged weights beside a plain formula."""

import torch
from torch import nn

from train.ema import WeightAverage


def moved(model: nn.Linear, value: float) -> nn.Linear:
    with torch.no_grad():
        model.weight.fill_(value)
    return model


def test_the_average_follows_with_a_decay_that_warms_up() -> None:
    model = moved(nn.Linear(1, 1, bias=False), 0.0)
    average = WeightAverage(model, 0.5)
    expected = 0.0
    for number, value in enumerate((1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0), start=1):
        average.update(moved(model, value))
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    with average.applied(model):
        assert model.weight.item() == torch.tensor(expected).item()
    assert model.weight.item() == 8.0


def test_the_raw_weights_come_back_for_a_while_and_are_saved_beside_the_averages() -> None:
    model = moved(nn.Linear(1, 1, bias=False), 0.0)
    average = WeightAverage(model, 0.5)
    average.update(moved(model, 8.0))
    with average.applied(model):
        averaged = model.weight.item()
        with average.lifted(model):
            assert model.weight.item() == 8.0
            with average.applied(model):  # as a checkpoint is written
                assert model.weight.item() == averaged
            assert model.weight.item() == 8.0
        assert model.weight.item() == averaged != 8.0
    assert model.weight.item() == 8.0


def test_a_restored_average_goes_on_alike() -> None:
    model = moved(nn.Linear(2, 2), 1.0)
    first, second = WeightAverage(model, 0.9), WeightAverage(moved(model, 5.0), 0.9)
    first.update(moved(model, 2.0))
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update(moved(model, 3.0))
    with first.applied(model):
        one = model.weight.clone()
    with second.applied(model):
        assert torch.equal(model.weight, one)
