"""Decodes and resizes photos in several ways on one core, and measures what each way costs.

python benchmarks/decode.py                # 300 drawn bins, some seconds
python benchmarks/decode.py --quick        # 40 bins
python benchmarks/decode.py --photos /abid/bin-images --json decode.json
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bintally.cli import readable_errors
from bintally.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeArgs:
    """What to measure."""

    num_images: int | None = None
    """Photos. Default: 300, or 40 with --quick."""
    image_size: int = 224
    """Height and width in pixels that photos are resized to."""
    photos: Path | None = None
    """Take the JPEGs of this folder instead of drawn bins."""
    quick: bool = False
    """Few photos and rounds: shows that it runs, and roughly how fast."""
    json: Path | None = None
    """Write the figures to this file."""

    def __post_init__(self) -> None:
        if self.num_images is not None and self.num_images < 1:
            raise ConfigError(f"num_images must be at least 1, not {self.num_images}")
        if not 16 <= self.image_size <= 2048:
            raise ConfigError(f"image_size must lie in 16..2048 pixels, not {self.image_size}")
        if self.photos is not None and not any(self.photos.glob("*.jpg")):
            raise ConfigError(f"photos must be a folder with *.jpg files, not {self.photos}")

    @property
    def num_photos(self) -> int:
        """Photos to take."""
        return self.num_images or (40 if self.quick else 300)


def format_rows(rows: dict[str, dict[str, Any]]) -> str:
    """A table for people."""
    lines = [f"{'row':<16}{'ms':>8}{'photos/s':>10}{'/ floor':>9}{'/ pillow':>10}"]
    for name, row in rows.items():
        ratios = f"{row['over_floor']:>9.2f}{row['over_pillow']:>10.2f}"
        lines.append(f"{name:<16}{row['ms']:>8.3f}{row['photos_per_s']:>10.0f}{ratios}{_describe_halved(row)}")
    return "\n".join(lines)


def _describe_halved(row: dict[str, Any]) -> str:
    if "psnr_db" not in row:
        return ""
    least, median = row["psnr_db"]
    return f"  {row['halved']:.0%} at half size: PSNR {least} dB at least, {median} in the median"


def write_json(rows: dict[str, dict[str, Any]], machine: dict[str, Any], photos: list[bytes], args: DecodeArgs) -> None:
    """Write the results to the file of the arguments."""
    from benchmarks.parts.decoders import METHOD

    assert args.json
    setting = {
        "num_images": len(photos),
        "mean_kb": round(sum(map(len, photos)) / len(photos) / 1000, 1),
        "photos": "of a folder" if args.photos else "drawn by data/synthetic.py",
        "image_size": args.image_size,
    }
    args.json.write_text(json.dumps({"rows": rows, **setting, "machine": machine, "method": METHOD}, indent=2) + "\n")


def main() -> None:
    """Parse the command line, measure, print."""
    import tyro

    with readable_errors():
        # A partial, since tyro would print a box for an error raised by a class.
        args = tyro.cli(partial(DecodeArgs), description=__doc__)
        from benchmarks.parts.decoders import draw_photos, measure_decoders, read_photos
        from benchmarks.parts.report import describe_machine

        machine = describe_machine()
        photos = read_photos(args.photos, args.num_photos) if args.photos else draw_photos(args.num_photos)
        rows = measure_decoders(photos, args.image_size, num_rounds=3 if args.quick else 9)
        print(format_rows(rows))
        if args.json:
            write_json(rows, machine, photos, args)


if __name__ == "__main__":
    main()
