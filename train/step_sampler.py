"""The tensors of a sampled step, read from the device all at once; and the loss, added up there in between."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from train.health_record import StepSample
from train.tensor_stats import (
    Activations,
    Stage,
    copy_weights,
    finite,
    gradient_tensors,
    read,
    split_stages,
    stage_sample,
    update_tensors,
)


class StepSampler:
    """Statistics of one sampled step at a time: `begin`, `after_backward`, `sample`, and `end` in any case."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        timed: Callable[[], AbstractContextManager[None]],
        *,
        activations: bool,
    ) -> None:
        self._model = model
        self._stages: list[Stage] = []
        self._activations = Activations(model, timed)
        self._with_activations = activations
        self._device = device
        self._gradients: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._loss_sum = torch.zeros((), device=device)
        self._num_rows, self._num_steps = 0, 0
        self._read_loss, self._read_rows = 0.0, 0

    def begin(self, *, inputs: bool) -> None:
        """Look at the next forward pass; `inputs`: also at what goes into each layer."""
        self._stages = split_stages(self._model)  # each time anew: frozen stages may have been released
        if self._with_activations:
            self._activations.attach(inputs=inputs)

    def after_backward(self) -> None:
        """Between backward and clipping: statistics of the gradients, and a copy of what the step will change."""
        self._activations.detach()
        self._gradients = gradient_tensors(self._stages)
        self._before = copy_weights(self._stages)

    def end(self) -> None:
        """Leave the network as it was."""
        self._activations.detach()
        self._gradients, self._before = {}, {}

    def add_loss(self, loss_sum: Tensor, num_rows: int) -> None:
        """Add a step's loss up, without reading it."""
        self._loss_sum = self._loss_sum + loss_sum.detach()
        self._num_rows += num_rows
        self._num_steps += 1

    def sample(self, step: int) -> StepSample:
        """What was seen in this step; one host sync."""
        groups: dict[str, Mapping[str, Tensor]] = {
            "loss": {"": self._loss_sum},
            "gradient": self._gradients,
            "update": update_tensors(self._stages, self._before),
            "variance": self._activations.variance,
            "dead": self._activations.dead,
        }
        values = read(groups)
        gradients = values["gradient"]
        num_steps, num_rows = self._num_steps, self._num_rows
        loss_sum = self._take_loss(values["loss"][""][0])
        return StepSample(
            step=step,
            loss=finite(loss_sum / max(1, num_rows)),
            num_steps=num_steps,
            grad_norm=finite(math.sqrt(sum(square for _, square, _, _ in gradients.values()))),
            stages={name: stage_sample(gradient, values["update"][name][0]) for name, gradient in gradients.items()},
            input_variance={name: v for name, (v,) in values["variance"].items() if finite(v) is not None},
            dead_share={name: v for name, (v,) in values["dead"].items()},
        )

    def mean_loss(self) -> float | None:
        """Per row since the last call; None without rows or if it is not finite. One host sync."""
        self._take_loss(float(self._loss_sum))
        mean = finite(self._read_loss / self._read_rows) if self._read_rows else None
        self._read_loss, self._read_rows = 0.0, 0
        return mean

    def _take_loss(self, loss_sum: float) -> float:
        self._read_loss += loss_sum
        self._read_rows += self._num_rows
        self._loss_sum = torch.zeros((), device=self._device)
        self._num_rows, self._num_steps = 0, 0
        return loss_sum
