"""Figures as a table for people and as JSON for comparisons."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks.parts.measure import METHOD

COLUMNS: Final = ("cpu_s_per_1000", "images_per_s", "rss_mb")


def describe_machine() -> dict[str, Any]:
    """What the figures depend on; nothing that tells one machine from its twin."""
    cpu_info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpu_info if line.startswith("model name")), "unknown")
    versions = {name: version(name) for name in ("ray", "torch", "obstore", "boto3", "pillow", "simplejpeg")}
    load = round(os.getloadavg()[0], 2)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_at_start": load,
        "python": platform.python_version(),
        **versions,
    }


def write_json(rows: dict[str, dict[str, Any]], machine: dict[str, Any], num_images: int, path: Path) -> None:
    """Write the results."""
    values = {"rows": rows, "num_images": num_images, "machine": machine, "method": METHOD}
    path.write_text(json.dumps(values, indent=2) + "\n")


def format_rows(rows: dict[str, dict[str, Any]], suffixes: tuple[str, ...]) -> str:
    """One table per latency; (x) is the ratio to the floor."""
    return "\n\n".join(_table(rows, suffix) for suffix in suffixes)


def _table(rows: dict[str, dict[str, Any]], suffix: str) -> str:
    keys = [key + suffix for key in COLUMNS]
    base = rows.get("floor", {})
    lines = [f"{'row':<18}" + "".join(f"{key:>27}" for key in keys)]
    for name, figures in rows.items():
        problem = next((figures[key + suffix] for key in ("skipped", "failed") if key + suffix in figures), None)
        cells = problem or "".join(_cell(figures, base, key) for key in keys)
        lines.append(f"{name:<18}{cells}")
    warm = [f"{key}_warm{suffix}" for key in ("cpu_s_per_1000", "images_per_s")]
    lines += [
        f"  {name} once warm: {_ratio(figures, warm[0], base, keys[0])} CPU-s per 1,000,"
        f" {_ratio(figures, warm[1], base, keys[1])} images/s"
        for name, figures in rows.items()
        if warm[0] in figures
    ]
    return "\n".join(lines)


def _ratio(figures: dict[str, Any], key: str, base: dict[str, Any], base_key: str) -> str:
    return f"{figures[key]}" + (f" ({figures[key] / base[base_key]:.2f}x)" if base_key in base else "")


def _cell(figures: dict[str, Any], base: dict[str, Any], key: str) -> str:
    ratio = f"({figures[key] / base[key]:.2f}x)" if key in base else ""
    return f"{figures[key]:>17}{ratio:>10}"
