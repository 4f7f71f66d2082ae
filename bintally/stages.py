"""The stages of a network, from its input to its head: what is frozen together, and shares a learning rate."""

from collections.abc import Iterator
from typing import Final

from torch import nn

from bintally.model import Counter

_BEGINNINGS: Final = {"PatchMerging", "PatchMergingV2", "EncoderBlock"}


def backbone_stages(model: Counter) -> list[list[nn.Parameter]]:
    """All parameters in stages, from the input to the head, which is the last one.

    A stage is what works at one resolution: it begins where a convolution, a pooling or a merging of patches makes the
    picture smaller. In vision transformers, whose resolution stays, each layer is a stage. Networks without any of
    these have the head alone, and what is before it.
    """
    *units, head = _units(model.backbone)
    in_units = {id(one) for unit in (*units, head) for one in unit.parameters()}
    # What belongs to no layer, as a class token and the position embeddings, works at the input.
    stages = [[one for one in model.backbone.parameters() if id(one) not in in_units]]
    for position, unit in enumerate(units):
        if position > 0 and _begins_stage(unit):
            stages.append([])
        stages[-1].extend(unit.parameters())
    return [stage for stage in stages if stage] + [[*head.parameters(), *model.link.parameters()]]


def _units(backbone: nn.Module) -> Iterator[nn.Module]:
    """Layers and blocks in their order; the last one is the head."""
    *body, head = backbone.children()
    for child in body:
        # The transformer's encoder is no Sequential, but has its layers in one.
        parts = child.children() if type(child).__name__ == "Encoder" else [child]
        for part in parts:
            yield from part if isinstance(part, nn.Sequential | nn.ModuleList) else [part]
    yield head


def _begins_stage(unit: nn.Module) -> bool:
    return any(type(one).__name__ in _BEGINNINGS or _stride(one) > 1 for one in unit.modules())


def _stride(module: nn.Module) -> int:
    """How many times smaller its output is; 1 for what is no convolution or pooling."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return 1
    return max(module.stride) if isinstance(module.stride, tuple) else module.stride
