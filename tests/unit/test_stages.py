"""The stages of the networks: each parameter in one, from the input to the head."""

import pytest

from bintally.config import Head, ModelConfig
from bintally.model import Counter, build_model
from bintally.stages import backbone_stages


def stages_of(backbone: str, head: Head = "softmax") -> tuple[Counter, list[list[str]]]:
    """The network, and the names of the parameters of each stage."""
    model = build_model(ModelConfig(backbone=backbone, head=head), num_classes=6)
    names = {id(one): name.removeprefix("backbone.") for name, one in model.named_parameters()}
    return model, [[names[id(one)] for one in stage] for stage in backbone_stages(model)]


@pytest.mark.parametrize(
    ("backbone", "firsts", "head"),
    [
        ("small_cnn", ["stem.0", "stages.0", "stages.1", "stages.2", "stages.3"], "head"),
        ("resnet18", ["conv1", "layer1", "layer2", "layer3", "layer4"], "fc"),
        ("resnet50", ["conv1", "layer1", "layer2", "layer3", "layer4"], "fc"),
        ("efficientnet_b0", ["features.0", "features.2", "features.3", "features.4", "features.6"], "classifier"),
        ("efficientnet_v2_s", ["features.0", "features.2", "features.3", "features.4", "features.6"], "classifier"),
        ("convnext_tiny", ["features.0", "features.2", "features.4", "features.6"], "classifier"),
        ("mobilenet_v3_large", ["features.0", "features.2", "features.4", "features.7", "features.13"], "classifier"),
        ("mobilenet_v3_small", ["features.0", "features.1", "features.2", "features.4", "features.9"], "classifier"),
        ("swin_t", ["features.0", "features.2", "features.4", "features.6"], "head"),
        ("vit_b_16", ["class_token", *(f"encoder.layers.encoder_layer_{n}." for n in range(12))], "heads"),
        ("densenet121", ["features.conv0", "features.denseblock1", *(f"features.transition{n}" for n in (1, 2, 3))],
         "classifier"),
        ("vgg11", ["features.0", "features.3", "features.6", "features.11", "features.16"], "classifier"),
    ],
)  # fmt: skip
def test_stages_begin_where_the_picture_shrinks(backbone: str, firsts: list[str], head: str) -> None:
    model, stages = stages_of(backbone)
    assert len(stages) == len(firsts) + 1
    assert [stage[0][: len(first)] for stage, first in zip(stages, firsts, strict=False)] == firsts
    assert {name.split(".")[0] for name in stages[-1]} == {head}
    every = [name for stage in stages for name in stage]
    assert sorted(every) == sorted(name.removeprefix("backbone.") for name, _ in model.named_parameters())


def test_a_transformers_positions_belong_to_its_input() -> None:
    _, stages = stages_of("vit_b_16")
    assert set(stages[0]) == {"class_token", "encoder.pos_embedding", "conv_proj.weight", "conv_proj.bias"}


def test_thresholds_belong_to_the_head() -> None:
    _, stages = stages_of("small_cnn", "cumulative_link")
    assert stages[-1] == ["head.weight", "head.bias", "link.raw"]
