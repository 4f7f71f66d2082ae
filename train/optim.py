"""Optimiser, learning-rate schedule, and which layers are trained."""

import math
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from bintally.config import OptimConfig
from bintally.model import Counter
from bintally.stages import backbone_stages


def build_optimizer(model: Counter, config: OptimConfig) -> Optimizer:
    """AdamW, or SGD with Nesterov momentum, over all parameters, also those that are frozen for now.

    Biases and norm parameters (one dimension) have no weight decay. With a layer_decay below 1, each stage before the
    head learns slower than the one behind it.
    """
    groups = _parameter_groups(model, config)
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    return AdamW(groups, lr=config.lr)


def _parameter_groups(model: Counter, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters that share a learning rate and a weight decay, from the input to the head."""
    stages = backbone_stages(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for position, stage in enumerate(stages):
        lr = config.lr * config.layer_decay ** (len(stages) - 1 - position)
        for parameter in stage:
            weight_decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((lr, weight_decay), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": weight_decay}
        for (lr, weight_decay), parameters in groups.items()
    ]


class Schedule:
    """Sets the learning rate of all groups: by how far the training is, and for `plateau` by the validation figures.

    How far is counted in epochs, by positions in their order of ids: so rates are the same whatever is dropped on the
    way and whenever that becomes known.
    """

    def __init__(self, optimizer: Optimizer, config: OptimConfig, max_epochs: int) -> None:
        """A new one.

        Args:
            optimizer: newly built, its groups at their peak rates; a state is loaded into it afterwards.
            config: the kind of schedule.
            max_epochs: of the whole training.
        """
        self._optimizer = optimizer
        self._config = config
        self._max_epochs = max_epochs
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self._best_nll = math.inf
        self._num_stale = 0
        self._factor = 1.0

    def begin_step(self, begin: float, end: float) -> None:
        """Set the rate of the step from `begin` to `end`, both in epochs since the begin of the training."""
        share = self._factor * lr_share(begin, end, self._config, self._max_epochs)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share

    def end_epoch(self, val_nll: float) -> None:
        """An epoch was scored, alike on all workers. Only `plateau` heeds it."""
        if self._config.schedule != "plateau":
            return
        improved = val_nll < self._best_nll
        self._best_nll = val_nll if improved else self._best_nll
        self._num_stale = 0 if improved else self._num_stale + 1
        if self._num_stale >= self._config.step_epochs:
            self._factor *= self._config.step_factor
            self._num_stale = 0

    def state_dict(self) -> dict[str, int | float]:
        """What a restarted training needs to go on."""
        return {
            "best_nll": self._best_nll,
            "num_stale": self._num_stale,
            "factor": self._factor,
        }

    def load_state_dict(self, state: dict[str, int | float]) -> None:
        """Go on from there."""
        self._num_stale = int(state["num_stale"])
        self._best_nll, self._factor = state["best_nll"], state["factor"]


def lr_share(begin: float, end: float, config: OptimConfig, max_epochs: int) -> float:
    """Share of the peak learning rate in the step from `begin` to `end` (in epochs): a warm-up, then the schedule.

    The linear warm-up goes by where a step ends, and what follows by where it begins, so that no step has rate zero.
    """
    warmup = config.warmup_fraction * max_epochs
    if end < warmup:
        return end / warmup
    if config.schedule == "cosine":
        progress = (begin - warmup) / (max_epochs - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    if config.schedule == "step":
        return math.pow(config.step_factor, int(begin) // config.step_epochs)
    return 1.0


def num_trained_stages(config: OptimConfig, epoch: int, num_stages: int) -> int:
    """How many stages are trained in an epoch (from 1), counted from the head.

    Args:
        config: which layers, and for `staged` how many epochs each stage waits for the next.
        epoch: counted from 1.
        num_stages: of the network, the head among them.
    """
    if config.trained == "all":
        return num_stages
    if config.trained == "head":
        return 1
    return min(num_stages, 1 + (epoch - 1) // config.stage_epochs)


def trained_changes(model: Counter, config: OptimConfig, epoch: int) -> bool:
    """Whether other layers are trained in this epoch (from 1) than in the one before; the first epoch has none."""
    num_stages = len(backbone_stages(model))
    now, before = (num_trained_stages(config, one, num_stages) for one in (epoch, epoch - 1))
    return epoch > 1 and now != before


def set_trained(model: Counter, config: OptimConfig, epoch: int) -> None:
    """Let gradients reach the layers that are trained in this epoch (from 1), and no others."""
    stages = backbone_stages(model)
    first = len(stages) - num_trained_stages(config, epoch, len(stages))
    for position, stage in enumerate(stages):
        for parameter in stage:
            parameter.requires_grad_(position >= first)


def set_train_mode(model: nn.Module) -> None:
    """Training mode, but evaluation mode in what is frozen: there, batch norms keep the statistics that were loaded."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(one.requires_grad for one in parameters):
            module.eval()
