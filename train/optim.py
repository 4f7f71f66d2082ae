"""Optimiser and learning-rate schedule."""

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from bintally.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW; biases and norm parameters (one dimension) have no weight decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.lr)


def build_schedule(optimizer: AdamW, config: OptimConfig, *, num_steps: int) -> LambdaLR:
    """Linear warm-up, then a cosine down to zero, one tick per optimiser step."""
    num_warmup = max(1, round(config.warmup_fraction * num_steps))
    return LambdaLR(optimizer, lambda step: lr_share(step, num_warmup=num_warmup, num_steps=num_steps))


def lr_share(step: int, *, num_warmup: int, num_steps: int) -> float:
    """Share of the peak learning rate at a step (counted from 0)."""
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))
