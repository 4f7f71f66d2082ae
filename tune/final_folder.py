"""The folder of a search's final trainings, which belong to one winner; a resumed search may find another."""

import hashlib
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from bintally.config import Recipe, read_recipe, write_recipe
from bintally.errors import ConfigError
from data.progress import say
from train.mirror import STATE

FOLDER: Final = "final"
RECIPE_FILE: Final = "recipe.json"  # what all seeds train, but for the seed


def in_full(winner: Recipe) -> Recipe:
    """What the final trainings train: the winner, each epoch of which visits all rows. A fraction saves trials time."""
    return replace(winner, epoch_fraction=1.0)


def are_of(winner: Recipe, run_dir: Path) -> bool:
    """Whether the final trainings that a run has, if any, are this winner's."""
    try:
        return read_recipe(run_dir / FOLDER / RECIPE_FILE) == winner
    except ConfigError:
        return False


def begin_final(winner: Recipe, run_dir: Path) -> Path:
    """The folder of the winner's final trainings, begun or gone on with; those of another winner are set aside."""
    folder = run_dir / FOLDER
    if are_of(winner, run_dir):
        return folder
    if folder.exists():
        aside = next(path for number in count(1) if not (path := run_dir / f"{FOLDER}-{number}").exists())
        folder.rename(aside)
        say(f"final: the search has another winner than before, whose final trainings are kept as {aside.name}/")
    folder.mkdir()
    write_recipe(winner, folder / RECIPE_FILE)
    return folder


def state_of(folder: Path) -> Path:
    """Where Tune keeps its own state of these trainings: by the winner, since S3 keeps such files when they go here."""
    return folder / STATE / hashlib.sha256((folder / RECIPE_FILE).read_bytes()).hexdigest()[:12]
