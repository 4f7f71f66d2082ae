"""Merge a variant into cluster.yaml; `make up VARIANT=cpu` does so by itself.

python cluster/render.py --variant cpu                  # to stdout
python cluster/render.py --variant cpu --out runs/cluster-cpu.yaml
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

from bintally.cli import readable_errors
from bintally.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderArgs:
    """What to merge."""

    variant: str
    """A file of cluster/ without its .yaml: cpu or one-gpu."""
    out: Path | None = None
    """Where to write the merged file. Default: stdout."""


def merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """`base` with what differs: mappings are merged key by key, null takes a key away, all else replaces."""
    merged = copy.deepcopy(base)
    for key, value in overlay.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def cluster_config(variant: str | None = None) -> dict[str, Any]:
    """cluster.yaml, with a variant of it.

    Raises:
        ConfigError: there is no such variant.
    """
    base: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    if variant is None:
        return base
    variants = {path.stem: path for path in (ROOT / "cluster").glob("*.yaml")}
    if variant not in variants:
        raise ConfigError(f"variant must be one of {', '.join(sorted(variants))}, not {variant!r}")
    return merge(base, yaml.safe_load(variants[variant].read_text()))


def make_folder(path: Path) -> None:
    """Make the folder that is written into.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out cannot be made: {error}") from None


def main() -> None:
    """Parse, merge, write."""
    with readable_errors():
        args = tyro.cli(RenderArgs, description=__doc__)
        config = yaml.safe_dump(cluster_config(args.variant), sort_keys=False, width=120)
        text = f"# Made by cluster/render.py of cluster.yaml and cluster/{args.variant}.yaml; edit those.\n{config}"
        if args.out is None:
            sys.stdout.write(text)
            return
        make_folder(args.out.parent)
        args.out.write_text(text)


if __name__ == "__main__":
    main()
