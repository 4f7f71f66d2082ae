"""The networks: shapes, weights from elsewhere, and that they can learn and count alone as in a batch."""

import copy
import inspect
import io
from email.message import Message
from http.client import IncompleteRead
from pathlib import Path
from typing import get_args
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from bintally.checkpoint import save_checkpoint
from bintally.config import Head, LossConfig, ModelConfig
from bintally.errors import ConfigError, WeightsError
from bintally.loss import row_losses
from bintally.model import ABID_MEAN, IMAGENET_MEAN, UNSUPPORTED, Counter, build_model
from bintally.recipes import smoke

HEADS: tuple[Head, ...] = get_args(Head)
BACKBONES = (
    "small_cnn", "resnet18", "resnet34", "resnet50", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny",
    "mobilenet_v3_large", "mobilenet_v3_small", "vit_b_16", "swin_t",
)  # fmt: skip


def build(
    backbone: str = "small_cnn",
    weights: object = None,
    *,
    num_classes: int = 6,
    seed: int = 0,
    head: Head = "softmax",
    image_size: int | None = None,
) -> Counter:
    torch.manual_seed(seed)
    config = ModelConfig(backbone=backbone, weights=None if weights is None else str(weights), head=head)
    return build_model(config, num_classes=num_classes, image_size=image_size)


def random_photos(num: int, size: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (num, size, size, 3), dtype=torch.uint8, generator=generator)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Shapes and sizes


@pytest.mark.parametrize(
    ("backbone", "size"), [("small_cnn", 32), ("small_cnn", 96), ("small_cnn", 75), ("resnet18", 64)]
)
@pytest.mark.parametrize("num_classes", [2, 6])
def test_bytes_become_one_logit_per_count(backbone: str, size: int, num_classes: int) -> None:
    logits = build(backbone, num_classes=num_classes)(random_photos(3, size))
    assert logits.shape == (3, num_classes)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_network_takes_a_step(backbone: str) -> None:
    """With a batch of two, as batch norm needs more than one value where the picture is a single pixel."""
    model = build(backbone, image_size=64).train()
    log_probs = model.log_probabilities(model(random_photos(2, 64)))
    assert log_probs.shape == (2, 6)
    assert log_probs.isfinite().all()
    log_probs[:, 3].sum().backward()
    unmoved = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.isfinite().all()]
    assert unmoved == []


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("num_classes", [2, 21])
def test_each_head_gives_a_distribution_over_the_counts(head: Head, num_classes: int) -> None:
    model = build(head=head, num_classes=num_classes)
    log_probs = model.log_probabilities(model(random_photos(3, 32)))
    assert log_probs.shape == (3, num_classes)
    torch.testing.assert_close(log_probs.logsumexp(dim=1), torch.zeros(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("head", HEADS)
def test_under_autocast_the_distribution_is_float32(head: Head) -> None:
    model = build(head=head)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = model.log_probabilities(model(random_photos(3, 32)))
    assert log_probs.dtype == torch.float32
    exact = model.log_probabilities(model(random_photos(3, 32)))
    torch.testing.assert_close(log_probs, exact, atol=0.2, rtol=0.1)
    assert not torch.equal(log_probs, exact), "autocast should have rounded"


@pytest.mark.parametrize("head", HEADS)
def test_a_copy_counts_alike(head: Head) -> None:
    """Averages of the weights are kept in a copy."""
    model = build(head=head)
    copied = copy.deepcopy(model)
    assert torch.equal(
        copied.log_probabilities(copied(random_photos(2))), model.log_probabilities(model(random_photos(2)))
    )


def test_a_transformer_is_built_for_the_size_of_the_photos() -> None:
    assert build("vit_b_16", image_size=96).state_dict()["backbone.encoder.pos_embedding"].shape == (1, 37, 768)


@pytest.mark.parametrize(("backbone", "size"), [("vit_b_16", 100), ("maxvit_t", 384)])
def test_a_size_that_a_transformer_cannot_take_is_named_in_one_line(backbone: str, size: int) -> None:
    with pytest.raises(ConfigError, match=rf"'{backbone}' cannot take data\.image_size {size}") as caught:
        build(backbone, image_size=size)
    assert "\n" not in str(caught.value)


def test_sizes_are_as_told() -> None:
    assert 2e5 < num_parameters(build()) < 3e5
    assert 11.1e6 < num_parameters(build("resnet18")) < 11.3e6


def test_the_input_is_normalised_inside() -> None:
    """A photo of the mean colour is zero to the backbone, and one standard deviation is one."""
    model = build()
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    colour = (torch.tensor(ABID_MEAN) * 255).round().to(torch.uint8)
    model(colour.expand(1, 64, 64, 3))
    assert seen[0].shape == (1, 3, 64, 64)
    assert seen[0].abs().max() < 0.02


def test_the_same_seed_gives_the_same_weights() -> None:
    ours, again, other = build().state_dict(), build().state_dict(), build(seed=1).state_dict()
    assert all(torch.equal(ours[key], again[key]) for key in ours)
    assert not torch.equal(ours["backbone.head.weight"], other["backbone.head.weight"])


@pytest.mark.parametrize("backbone", ["resnet43", "fasterrcnn_resnet50_fpn", "", "SMALL_CNN"])
def test_an_unknown_backbone_lists_the_choices(backbone: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone") as caught:
        build(backbone)
    assert all(name in str(caught.value) for name in ("small_cnn", "resnet34", "convnext_tiny"))


@pytest.mark.parametrize("backbone", ["googlenet", "inception_v3"])
def test_a_backbone_with_auxiliary_classifiers_is_refused_by_name(backbone: str) -> None:
    with pytest.raises(ConfigError, match=f"'{backbone}' is not supported") as caught:
        build(backbone)
    assert backbone not in str(caught.value).split("choose")[1]


def test_no_other_backbone_has_auxiliary_classifiers() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    modules = {name: inspect.getmodule(torchvision.models.get_model_builder(name)) for name in names}
    assert {name for name, module in modules.items() if "aux_logits" in inspect.getsource(module)} == UNSUPPORTED


# Weights from elsewhere


def contiguous(model: Counter) -> dict[str, Tensor]:
    """The state of its backbone in the layout that safetensors takes."""
    return {key: value.contiguous() for key, value in model.backbone.state_dict().items()}


def save_weights(path: Path, *, num_classes: int = 6, backbone: str = "small_cnn") -> dict[str, Tensor]:
    """The state dict of a backbone, as torchvision publishes them, in a file of the kind that the suffix tells."""
    state = contiguous(build(backbone, num_classes=num_classes, seed=99))
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return state


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("num_classes", [6, 1000])
def test_a_weights_file_fills_all_but_a_head_of_another_shape(tmp_path: Path, name: str, num_classes: int) -> None:
    theirs = save_weights(tmp_path / name, num_classes=num_classes)
    fresh = build().backbone.state_dict()
    ours = build(weights=tmp_path / name).backbone.state_dict()
    from_file = {key for key in ours if ours[key].shape == theirs[key].shape and torch.equal(ours[key], theirs[key])}
    head = {"head.weight", "head.bias"}
    assert from_file == (set(ours) if num_classes == 6 else set(ours) - head)
    if num_classes != 6:
        assert all(torch.equal(ours[key], fresh[key]) for key in head)


def test_pretrained_weights_bring_the_normalisation_of_imagenet(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pth")
    model = build(weights=tmp_path / "weights.pth")
    assert model.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)


def test_a_checkpoint_folder_gives_its_weights_and_its_normalisation(tmp_path: Path) -> None:
    source = save_weights(tmp_path / "weights.pth")
    theirs = build(weights=tmp_path / "weights.pth")  # normalises as ImageNet does
    save_checkpoint(tmp_path / "checkpoint", theirs, smoke(), {})
    ours = build(weights=tmp_path / "checkpoint")
    assert all(torch.equal(value, source[key]) for key, value in ours.backbone.state_dict().items())
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.std, theirs.std)
    scratch = build()
    assert scratch.mean.flatten().tolist() == pytest.approx(ABID_MEAN)
    save_checkpoint(tmp_path / "checkpoint", scratch, smoke(), {})
    assert torch.equal(build(weights=tmp_path / "checkpoint").mean, scratch.mean)


def test_a_checkpoint_folder_of_another_backbone_does_not_fit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", build(), smoke(), {})
    with pytest.raises(WeightsError, match=r"do not fit model\.backbone 'resnet18'"):
        build("resnet18", tmp_path / "checkpoint")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there are no weights at"):
        build(weights=tmp_path)


def test_positions_of_a_transformer_are_resized_to_the_photos(tmp_path: Path) -> None:
    """A gradient over a grid of 4 x 4 patches stays one, from the same first to the same last value, over 6 x 6."""
    state = contiguous(build("vit_b_16", image_size=64, num_classes=1000))
    gradient = torch.linspace(-1, 1, 4).expand(4, 4).reshape(1, 16, 1)
    positions = torch.cat([torch.full((1, 1, 768), 7.0), gradient.expand(1, 16, 768)], dim=1)
    safetensors.torch.save_file(state | {"encoder.pos_embedding": positions}, tmp_path / "vit.safetensors")
    ours = build("vit_b_16", tmp_path / "vit.safetensors", image_size=96).backbone.state_dict()
    resized = ours["encoder.pos_embedding"]
    assert (resized[0, 0] == 7).all()
    grid = resized[0, 1:, 0].reshape(6, 6)
    torch.testing.assert_close(grid, grid[:1].expand(6, 6))
    assert grid[0].tolist()[::5] == pytest.approx([-1, 1], abs=1e-5)
    assert grid[0].diff().min() > 0
    assert torch.equal(ours["conv_proj.weight"], state["conv_proj.weight"])


def test_positions_of_no_square_of_patches_cannot_be_resized(tmp_path: Path) -> None:
    state = contiguous(build("vit_b_16", image_size=32))
    state["encoder.pos_embedding"] = torch.zeros(1, 4, 768)
    safetensors.torch.save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(WeightsError, match="position embeddings cannot be resized"):
        build("vit_b_16", tmp_path / "vit.safetensors", image_size=64)


def test_weights_are_left_alone_when_a_state_is_loaded_afterwards(tmp_path: Path) -> None:
    config = ModelConfig(backbone="resnet18", weights=str(tmp_path / "absent.pth"))
    model = build_model(config, num_classes=6, load_weights=False)
    assert model.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)


def test_weights_of_another_network_do_not_fit(tmp_path: Path) -> None:
    save_weights(tmp_path / "small.pth")
    with pytest.raises(WeightsError, match=r"do not fit model\.backbone 'resnet18'"):
        build("resnet18", tmp_path / "small.pth")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.pth", b""),
        ("empty.safetensors", b""),
        ("garbage.safetensors", b"<html>not found</html>"),
        ("garbage.pth", b"<html>not found</html>"),
        ("number.pth", b"\x80\x02K\x01."),
    ],
)
def test_a_file_that_holds_no_weights(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsError, match=name):
        build(weights=tmp_path / name)


def test_a_file_cut_short(tmp_path: Path) -> None:
    for name in ("cut.pth", "cut.safetensors"):
        save_weights(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1000])
        with pytest.raises(WeightsError, match=name):
            build(weights=tmp_path / name)


def test_a_training_state_is_no_state_dict(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {"weight": torch.zeros(1)}}, tmp_path / "state.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        build(weights=tmp_path / "state.pth")


def test_small_cnn_has_no_published_weights() -> None:
    with pytest.raises(WeightsError, match="small_cnn has no published weights"):
        build(weights="IMAGENET1K_V1")


def test_an_unknown_name_of_weights_lists_the_choices() -> None:
    with pytest.raises(WeightsError, match="IMAGENET1K_V1"):
        build("resnet18", "IMAGENET22K")


class Reply(io.BytesIO):
    """What urlopen returns."""

    def info(self) -> Message:
        """No header, so no length."""
        return Message()


@pytest.mark.parametrize(
    "outcome",
    [
        URLError("Temporary failure in name resolution"),
        TimeoutError("timed out"),
        IncompleteRead(b"half"),
        b"<html>please log in to this wifi</html>",
    ],
    ids=["no internet", "timeout", "cut off", "captive portal"],
)
def test_a_failed_download_says_what_to_do(
    outcome: Exception | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def urlopen(*_: object, **__: object) -> Reply:
        if isinstance(outcome, bytes):
            return Reply(outcome)
        raise outcome

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # so that no earlier download answers
    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    with pytest.raises(WeightsError, match="could not be downloaded") as caught:
        build("resnet18", "IMAGENET1K_V1")
    assert "give its path as model.weights" in str(caught.value)
    assert "train from scratch with model.weights null" in str(caught.value)


# Behaviour


# Thresholds widen slowly, and bound the likelihood of a count between two of them.
@pytest.mark.parametrize(
    ("head", "best"), [("softmax", 0.01), ("corn", 0.1), ("cumulative_link", 0.5), ("regression", 0.1)]
)
def test_eight_photos_can_be_learnt_by_heart(head: Head, best: float) -> None:
    model = build(head=head).train()
    images, counts = random_photos(8, 48), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(100):
        loss = row_losses(model(images), counts, model.head, LossConfig()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1
    assert losses[-1] < best
    assert torch.equal(model.log_probabilities(model.eval()(images)).argmax(dim=1), counts)


@torch.inference_mode()
@pytest.mark.parametrize("training", [False, True])
def test_a_photo_counts_alone_as_in_a_batch(training: bool) -> None:
    model = build().train(training)
    images = random_photos(4)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert together.std(dim=0).min() > 1e-3, "the photos should not look alike to the model"


def test_every_parameter_gets_a_gradient() -> None:
    model = build()
    F.cross_entropy(model(random_photos(4)), torch.tensor([0, 1, 2, 3])).backward()
    assert [name for name, one in model.named_parameters() if one.grad is None or not one.grad.abs().sum() > 0] == []
