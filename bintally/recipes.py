"""Named recipes. Each docstring states what to expect, of which hardware, and the command.

A search or `train/fit.py` starts from one of them by `--recipe NAME` and overrides fields of the same dataclass.
"""

from collections.abc import Callable
from typing import Final

from bintally.config import DataConfig, ModelConfig, OptimConfig, Recipe
from bintally.errors import ConfigError


def smoke() -> Recipe:
    """The whole way in seconds, for tests; learns next to nothing.

    python train/fit.py --recipe smoke --source file:///tmp/bucket
    """
    return Recipe(
        name="smoke",
        data=DataConfig(image_size=32),
        model=ModelConfig(backbone="small_cnn"),
        optim=OptimConfig(lr=1e-3, global_batch_size=16),
        max_epochs=2,
    )


def demo() -> Recipe:
    """Counts synthetic bins, from scratch on two CPU cores.

    python tune/search.py --recipe demo --source file:///tmp/bucket
    """
    return Recipe(
        name="demo",
        data=DataConfig(image_size=96),
        model=ModelConfig(backbone="small_cnn"),
        optim=OptimConfig(lr=3e-3, global_batch_size=32),
        max_epochs=12,
    )


def baseline_resnet34() -> Recipe:
    """The ABID challenge's network and input: ResNet-34 from scratch on photos squashed to 224 px.

    Published: 55.67 % accuracy, RMSE 0.930 on the official validation split, counts 0-5, 8 GPU-hours or so. Not yet
    reproduced here. The optimiser is AdamW instead of the challenge's stepped SGD.

    python tune/search.py --recipe baseline_resnet34 --use-gpu --num-workers 4
    """
    return Recipe(
        name="baseline_resnet34",
        data=DataConfig(),
        model=ModelConfig(backbone="resnet34"),
        optim=OptimConfig(lr=1e-3, global_batch_size=128),
        max_epochs=24,
    )


RECIPES: Final[dict[str, Callable[[], Recipe]]] = {
    recipe.__name__: recipe for recipe in (smoke, demo, baseline_resnet34)
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: there is none; the message lists them.
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} is unknown; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
