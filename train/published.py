"""What others report for counting ABID's bins, each with its split and data: nothing unlike is compared silently.

A figure can be set beside another only if both are of the same photos. That holds for those of the challenge's
validation list, and for a run on the whole of that list with counts 0 to 5.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from bintally.source_config import DataConfig

OFFICIAL_IMAGES: Final = 36_032
OFFICIAL_SPLIT: Final = f"official validation list, {OFFICIAL_IMAGES:,} photos"
MAX_LOST: Final = 0.01  # share of the list that may be unreadable
OFFICIAL_MAX_COUNT: Final = 5
_SUBSET: Final = "10,441 photos of the Udacity list, which has siblings and 38 ids twice"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One reported result; what its source does not say is left out."""

    who: str
    split: str
    data: str
    """What was trained on."""
    classes: str
    accuracy: float
    method: str = ""
    rmse: float | None = None
    rmse_per_count: tuple[float, ...] = ()
    official: bool = False
    """Of the challenge's validation list, counts 0 to 5."""
    note: str = ""


PUBLISHED: Final = (
    Published(
        who="ABID challenge baseline (silverbottlep/abid_challenge, 2017)",
        method="ResNet-34 from scratch, 224 px",
        split=OFFICIAL_SPLIT,
        data="324,735 photos of the official training list",
        classes="0-5",
        accuracy=0.5567,
        rmse=0.930,
        rmse_per_count=(0.187, 0.542, 0.710, 0.867, 1.025, 1.311),
        official=True,
        note="its own accuracies per count, weighted by the counts of the list, make 57.4 %",
    ),
    Published(
        who="Majority class: always 3",
        split=OFFICIAL_SPLIT,
        data="nothing",
        classes="0-5",
        accuracy=0.248,
        rmse=1.355,
        official=True,
    ),
    Published(
        who="CS229 report (Bertorello, Sripada, Dendumrongsup, 2018)",
        method="ResNet-34, ImageNet weights, Adam",
        split="own random 80/10/10 of the official training list, validation part",
        data="about 324,000 photos",
        classes="0-5",
        accuracy=0.562,
        rmse=0.90,
        note="a random split leaks siblings",
    ),
    Published(
        who="Capstone report of suinaowawa",
        method="ResNet-50",
        split="own",
        data="10 % of the data",
        classes="1-5",
        accuracy=0.31,
        rmse=1.96,
    ),
    Published(
        who="Capstone report, second",
        split="own",
        data=_SUBSET,
        classes="1-5",
        accuracy=0.30,
        note="about 30 %, as reported",
    ),
    Published(
        who="Capstone report of ayeshasilvia",
        split="own",
        data=_SUBSET,
        classes="1-5",
        accuracy=0.28,
    ),
    Published(
        who="Capstone report, fourth",
        split="own, validation part",
        data=_SUBSET,
        classes="1-5",
        accuracy=0.40,
        note="of the photos that chose the model",
    ),
)


def compare_published(data: DataConfig, split: str, num_images: int) -> dict[str, Any]:
    """Every published result and whether a run that scored these photos can be set beside it, JSON-ready."""
    differs = differences(data, split, num_images)
    rows = [asdict(one) | {"comparable": one.official and not differs} for one in PUBLISHED]
    return {"differs": differs, "rows": rows}


def differences(data: DataConfig, split: str, num_images: int) -> list[str]:
    """In what a run differs from the official evaluation; empty if its figures can be compared.

    The number of photos tells a sample, or a bucket that is a part of ABID, from the whole list.
    """
    least = math.ceil(OFFICIAL_IMAGES * (1 - MAX_LOST))
    checks = {
        f"it is split by {data.split_by}, not by the official lists": data.split_by != "official",
        f"it scores the {split} split, not the test split": split != "test",
        f"it counts 0 to {data.max_count}, not 0 to {OFFICIAL_MAX_COUNT}": data.max_count != OFFICIAL_MAX_COUNT,
        f"it scores {num_images:,} photos, not the {OFFICIAL_IMAGES:,} of the list": not (
            least <= num_images <= OFFICIAL_IMAGES
        ),
    }
    return [difference for difference, holds in checks.items() if holds]
