"""Searches that others describe, as `--preset NAME`; flags that are given beside it override single settings.

SageMaker's tuner chose the reports' points and ran each to its end, and so does a preset unless --asha is given. None
says how many trials it ran, so --num-trials keeps its default. Figures are the reports' own, on lists of photos and
random splits of theirs: nothing here was measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from bintally.errors import ConfigError
from tune.config import NLL
from tune.objective import Objective
from tune.space import BATCH_SIZE, LR, Choice, Dimension, Interval

_LR: Final = Interval(low=1e-3, high=1e-1, log=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A search; what is not given is as without a preset."""

    recipe: str = "report_resnet50"
    """Named recipe of bintally/recipes.py."""
    settings: tuple[str, ...] = ()
    """What the recipe has otherwise, as FIELD=VALUE."""
    space: dict[str, Dimension] = field(default_factory=dict)
    """What its trials draw from."""
    objective: Objective = NLL
    """What its best trial is best at."""
    asha: bool = False
    """Whether trials are stopped early."""


def capstone_a() -> Preset:
    """Learning rate 0.001-0.1, batch 16, 32 or 64 and 2 to 6 epochs, drawn at random.

    Not known: the objective (validation loss here).
    """
    sizes = Choice(values=(16, 32, 64))
    return Preset(space={LR: _LR, BATCH_SIZE: sizes, "max_epochs": Interval(low=2, high=6, whole=True)})


def capstone_b() -> Preset:
    """Five epochs of a tenth of the rows each, for accuracy, over learning rate and batch size.

    The report found lr 0.0033 and batch 128, and after 50 epochs 31 % accuracy, RMSE 1.96, counts 0-5. Not known: the
    bounds; these are capstone-a's, with a batch of 128. The report's photos have 214 pixels, the recipe's 224.
    """
    return Preset(
        settings=("max_epochs=5", "epoch_fraction=0.1"),
        space={LR: _LR, BATCH_SIZE: Choice(values=(16, 32, 64, 128))},
        objective=Objective(metric="val_accuracy", mode="max"),
    )


def capstone_c() -> Preset:
    """Learning rate 0.005-0.01, batch 16 to 128 and 2 to 5 epochs, drawn at random.

    The report got 26 % accuracy, from a head of three layers on photos of 200 pixels; the recipe's head has one, its
    photos 224. Not known: the objective (validation loss here).
    """
    epochs = Interval(low=2, high=5, whole=True)
    sizes = Choice(values=(16, 32, 64, 128))
    return Preset(space={LR: Interval(low=5e-3, high=1e-2, log=True), BATCH_SIZE: sizes, "max_epochs": epochs})


def capstone_d() -> Preset:
    """capstone-b after its report's refinement: counts visited equally often and weighted, SGD, a plateau schedule.

    Not known: how long the schedule waits (1 epoch here, since there are five), and whether the search was run again.
    """
    refined = ("balanced=true", "loss.class_weights=true", "optim.optimizer=sgd", "optim.schedule=plateau")
    found = capstone_b()
    return Preset(
        settings=(*found.settings, *refined, "optim.step_epochs=1"), space=found.space, objective=found.objective
    )


PRESETS: Final[dict[str, Callable[[], Preset]]] = {
    preset.__name__.replace("_", "-"): preset for preset in (capstone_a, capstone_b, capstone_c, capstone_d)
}


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: there is none; the message lists them.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
