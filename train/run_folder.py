"""What a run folder tells by itself: the recipe, the code and the machine, and every epoch."""

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from bintally.config import Recipe, read_recipe, write_recipe
from bintally.errors import ConfigError
from data.held_folder import replacing
from train.health_rules import Finding
from train.tracking import flat_fields

_PACKAGES: Final = ("bintally", "ray", "torch", "torchvision", "numpy", "pyarrow", "obstore")
RECIPE_FILE: Final = "recipe.json"
METRICS_FILE: Final = "metrics.jsonl"
HEALTH_FILE: Final = "health.json"
_MAY_CHANGE: Final = {"max_epochs", "patience", "compute.micro_batch_size", "compute.fit_memory"}  # of a run begun
_CODE: Final = Path(__file__).parent.parent


def check_recipe(run_dir: Path, recipe: Recipe, place: str) -> None:
    """Refuse to go on with a training of another recipe, but for its length and how many photos it takes at once.

    Args:
        run_dir: which may hold a training.
        recipe: to go on with.
        place: where the run lies for its user.

    Raises:
        ConfigError: the training was begun with other values; the message names them.
    """
    path = run_dir / RECIPE_FILE
    if not path.exists():
        return
    begun, now = flat_fields(asdict(read_recipe(path))), flat_fields(asdict(recipe))
    changed = [f"{name} {begun[name]!r}, not {now[name]!r}" for name in begun if begun[name] != now[name]]
    if fixed := [change for change in changed if change.split()[0] not in _MAY_CHANGE]:
        raise ConfigError(f"run_dir {place} holds a training with {'; '.join(fixed)}: give that, or another run_dir")


def describe_run(run_dir: Path, recipe: Recipe) -> None:
    """Write recipe.json and environment.json.

    Raises:
        ConfigError: they cannot be written, as when the disk is full; a recipe.json that was there is whole.
    """
    with replacing(run_dir / RECIPE_FILE, flag="run_dir") as partial:
        write_recipe(recipe, partial)
    environment = {
        "command": sys.argv,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in _PACKAGES},
    }
    (run_dir / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")


def git_revision() -> str | None:
    """Commit of this code, with -dirty where tracked files differ from it; None outside a repository."""
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run(  # noqa: S603  # all of it is fixed here
        [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=_CODE,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The epochs in a metrics.jsonl, in order; of one that was reported again after a restart, the later figures."""
    epochs: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        metrics = json.loads(line)
        epochs[metrics["epoch"]] = epochs.get(metrics["epoch"], {}) | metrics
    return [epoch for _, epoch in sorted(epochs.items())]


def findings_of(metrics: dict[str, Any]) -> list[Finding]:
    """What the health rules found up to an epoch."""
    return [Finding(**finding) for finding in metrics.get("findings", [])]


class EpochLog:
    """Appends epochs to a run folder's metrics.jsonl, and names what the health rules find in them, each rule once."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_FILE
        self._told: set[str] = set()

    def add(self, metrics: dict[str, Any]) -> list[str]:
        """Append an epoch; lines for the terminal on what was found with it."""
        lines = [_describe(finding) for finding in findings_of(metrics) if finding.rule not in self._told]
        self._told |= {finding.rule for finding in findings_of(metrics)}
        try:
            with self._path.open("a") as log:
                log.write(json.dumps(metrics) + "\n")
        except OSError as error:  # the training may well end without it; a checkpoint that fails says so by itself
            lines.append(f"{self._path} lacks epoch {metrics['epoch']}: {error.strerror}")
        return lines


def _describe(finding: Finding) -> str:
    return f"health: {finding.saw}, since {finding.since}; {finding.advice}"
