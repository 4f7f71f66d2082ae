"""Exponential moving average of the weights: what is scored and kept, while the raw weights go on learning."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages of a model's parameters; buffers, as batch norm's, are already averages and stay the model's own."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._num_updates = 0
        self._averages = [parameter.detach().clone() for parameter in model.parameters()]
        self._raw: list[Tensor] = []

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow the weights after a step. The decay warms up, or the first weights would weigh for thousands."""
        self._num_updates += 1
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        torch._foreach_lerp_(self._averages, list(model.parameters()), 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Have the averages in the model for a while, as to score or save it."""
        outer, self._raw = self._raw, [parameter.detach().clone() for parameter in model.parameters()]
        _copy(self._averages, model)
        try:
            yield
        finally:
            _copy(self._raw, model)
            self._raw = outer

    @contextmanager
    def lifted(self, model: nn.Module) -> Iterator[None]:
        """Within `applied`, have the raw weights back for a while."""
        _copy(self._raw, model)
        try:
            yield
        finally:
            _copy(self._averages, model)

    def state_dict(self) -> dict[str, object]:
        """What `load_state_dict` takes."""
        return {"num_updates": self._num_updates, "averages": self._averages}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a saved state."""
        num_updates, averages = state["num_updates"], state["averages"]
        assert isinstance(num_updates, int)
        assert isinstance(averages, list)
        self._num_updates = num_updates
        for own, saved in zip(self._averages, averages, strict=True):
            own.copy_(saved)


@torch.no_grad()
def _copy(values: list[Tensor], model: nn.Module) -> None:
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.copy_(value)
