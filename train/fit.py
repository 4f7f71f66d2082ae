"""Train one recipe.

    python train/fit.py --recipe demo --source file:///absolute/bucket

Takes a named recipe or the best.json of a search (--recipe-file). Leaves in the run folder: checkpoint/ (the best
epoch), recipe.json, metrics.jsonl, health.json and drops.json. Exits with 2 if the training diverged or --on-health
stopped it.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from bintally.cli import readable_errors
from bintally.config import Recipe, parse_recipe, read_recipe, with_settings
from bintally.recipes import get_recipe
from data.args import ModelArgs, ReadArgs, ResourceArgs, SourceArgs, absolute_weights, is_remote
from train.mirror import open_run
from train.tracking import TrackerName, check_trackers


@dataclass(frozen=True, kw_only=True, slots=True)
class FitArgs:
    """Train one recipe and keep its best checkpoint."""

    recipe: str = "baseline_resnet34"
    """Named recipe of bintally/recipes.py."""
    recipe_file: str | None = None
    """A recipe as JSON, such as the best.json of a search, also s3://bucket/prefix/best.json; instead of --recipe."""
    lr: float | None = None
    """Peak learning rate. Default: the recipe's."""
    batch_size: int | None = None
    """Global batch size over all workers. Default: the recipe's."""
    max_epochs: int | None = None
    """Passes over the training rows. Default: the recipe's."""
    seed: int | None = None
    """Seeds the weights and the order of the rows. Default: the recipe's."""
    epoch_fraction: float | None = None
    """Share of the training rows that one epoch visits, a fresh one each epoch. Default: the recipe's."""
    balanced: bool = False
    """Visit every count equally often."""
    set: tuple[str, ...] = ()
    """Other fields of the recipe, such as `optim.schedule=step model.head=corn`; a run's recipe.json shows them all."""
    track: tuple[TrackerName, ...] = ()
    """Also record the epochs for tensorboard, or mlflow (an extra), or both."""
    run_dir: str | None = None
    """Folder of the run, or s3://bucket/prefix. Default: a new one under runs/. An interrupted run continues there."""
    bucket: tyro.conf.OmitArgPrefixes[SourceArgs] = field(default_factory=SourceArgs)
    model: tyro.conf.OmitArgPrefixes[ModelArgs] = field(default_factory=ModelArgs)
    read: tyro.conf.OmitArgPrefixes[ReadArgs] = field(default_factory=ReadArgs)
    resources: tyro.conf.OmitArgPrefixes[ResourceArgs] = field(default_factory=ResourceArgs)

    def resolve(self) -> Recipe:
        """The recipe to train.

        Raises:
            ConfigError: the recipe is unknown, or a value is out of range.
        """
        named = self._recipe_of_file(self.recipe_file) if self.recipe_file else get_recipe(self.recipe)
        recipe = self.model.apply(self.bucket.apply(named))
        optim = replace(
            recipe.optim,
            lr=recipe.optim.lr if self.lr is None else self.lr,
            global_batch_size=recipe.optim.global_batch_size if self.batch_size is None else self.batch_size,
        )
        max_epochs = recipe.max_epochs if self.max_epochs is None else self.max_epochs
        seed = recipe.seed if self.seed is None else self.seed
        changed = replace(
            recipe,
            optim=optim,
            max_epochs=max_epochs,
            seed=seed,
            epoch_fraction=recipe.epoch_fraction if self.epoch_fraction is None else self.epoch_fraction,
            balanced=self.balanced or recipe.balanced,
        )
        chosen = with_settings(changed, self.set)
        return replace(chosen, model=replace(chosen.model, weights=absolute_weights(chosen.model.weights)))

    def _recipe_of_file(self, path: str) -> Recipe:
        if not is_remote(path, "recipe_file"):
            return read_recipe(Path(path))
        from data.s3_folder import read_object  # heavy, and only for this

        return parse_recipe(read_object(path, "recipe_file"), origin=path)


def main() -> None:
    """Parse, then train."""
    with readable_errors():
        args = tyro.cli(FitArgs, description=__doc__)
        recipe, read, resources = args.resolve(), args.read.resolve(), args.resources.resolve()
        check_trackers(args.track)
        from train.run import fit  # heavy imports only after the flags are known to be good

        with open_run(args.run_dir, "fit") as run:
            fit(recipe, read, resources, run.folder, args.track, run.place)


if __name__ == "__main__":
    main()
