"""How large packages are with all that they need, as installed for the interpreter that runs this; in MB.

python benchmarks/parts/package_size.py torch "ray[serve]"
"""

import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(requirements: list[str]) -> dict[str, Distribution]:
    """The distributions of requirements and of what these require, by name."""
    found: dict[str, Distribution] = {}
    open_ones = [(Requirement(text), Requirement(text).extras) for text in requirements]
    seen = set()
    while open_ones:
        requirement, extras = open_ones.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(extras)) in seen:
            continue
        seen.add((name, frozenset(extras)))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of another platform's marker, or not wanted by whoever installed
            continue
        for text in found[name].requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                open_ones.append((inner, inner.extras))
    return found


def size_mb(packages: dict[str, Distribution]) -> float:
    """Of all their files, byte code included."""
    files = (Path(str(one.locate_file(file))) for one in packages.values() for file in one.files or ())
    return sum(path.stat().st_size for path in files if path.is_file()) / 1e6


if __name__ == "__main__":
    print(round(size_mb(needed(sys.argv[1:]))))
