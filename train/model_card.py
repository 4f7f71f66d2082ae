"""The model card: what stands beside the weights, for whoever finds the folder."""

from pathlib import Path
from typing import Any, Final

from bintally.config import Recipe
from train.run_folder import git_revision

CARD_FILE: Final = "README.md"


def write_model_card(folder: Path, recipe: Recipe, metrics: dict[str, Any]) -> None:
    """Write the card of a checkpoint.

    Args:
        folder: of the checkpoint.
        recipe: what it was trained by.
        metrics: of its best epoch, on the validation split.
    """
    data, optim = recipe.data, recipe.optim
    weights = f"weights {recipe.model.weights}" if recipe.model.weights else "from scratch"
    figures = "\n".join(
        f"| {label} | {metrics[name]:.4g} |"
        for name, label in (
            ("val_num_images", "validation photos"),
            ("val_accuracy", "exactly right, share"),
            ("val_within_one", "within one, share"),
            ("val_rmse", "RMSE, items"),
            ("val_mae", "MAE, items"),
            ("val_nll", "NLL, nats"),
        )
    )
    (folder / CARD_FILE).write_text(
        f"""# Bin counter: {recipe.name}

Counts the items in a photo of a warehouse bin, 0 to {data.max_count}; it knows no
other answer, also where there are more.

- Network: {recipe.model.backbone}, {weights}, {recipe.model.head} head; photos of {data.image_size} px,
  {data.resize}.
- Trained on {data.source}, ids {data.ids}, split {data.split_by}; {optim.optimizer}, learning rate {optim.lr:.3g}, \
{optim.global_batch_size} photos per step, seed {recipe.seed}; best epoch {metrics["epoch"]} of {recipe.max_epochs}.
- BinTally at commit {git_revision() or "unknown"}.

| on the validation split, which chose the epoch | |
| --- | --- |
{figures}

`python train/evaluate.py --checkpoint THIS_FOLDER --split test` scores it on photos that chose nothing;
with `--calibrate` it also fits how far the probabilities can be trusted (calibration.json).
`python train/accelerate.py --checkpoint THIS_FOLDER` makes and checks graphs that count faster on CPUs.

## What to know before you trust it

- A label is what the inventory record says, not what a person counted. Where records are wrong, it has learnt them.
- Items that hide each other, tape, and dark or blurred photos are counted badly; some photos nobody can count.
- Photos of the same bin before and after a pick are near-copies. Scores on a split that parts them ("hash",
  "official") are too good.
- ABID is licensed CC BY-NC-SA 3.0 US (non-commercial); that may bind what is trained on it.
"""
    )
