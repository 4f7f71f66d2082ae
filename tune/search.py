"""Search learning rate and batch size with ASHA.

    python tune/search.py                                     # the public ABID bucket, anonymously
    python tune/search.py --recipe demo --source file:///absolute/bucket --num-trials 8
    python tune/search.py --run-dir runs/x --resume           # go on with an interrupted search

Leaves in the run folder: best.json (a recipe for train/fit.py), checkpoint/ (for serve and train/evaluate.py),
curves.png, trials.jsonl, results.json and drops.json.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from bintally.cli import readable_errors
from bintally.errors import ConfigError
from bintally.recipes import get_recipe
from data.args import ModelArgs, ReadArgs, ResourceArgs, SourceArgs, new_run_dir
from train.tracking import TrackerName, check_trackers
from tune.config import BudgetConfig, SearchConfig, read_search, write_search
from tune.space import BATCH_SIZE, LR, Choice, Interval, SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchArgs:
    """Search learning rate and batch size with ASHA over multi-worker trainings."""

    recipe: str = "baseline_resnet34"
    """Named recipe of bintally/recipes.py that all trials share."""
    num_trials: int = 16
    """Points of the space to try."""
    max_epochs: int | None = None
    """Epochs of a trial that is not stopped early. Default: the recipe's."""
    lr: tuple[float, float] | None = None
    """Bounds of the learning rate, drawn log-uniformly. Default: a thirtieth to thrice the recipe's."""
    batch_sizes: tuple[int, ...] = (32, 64, 128)
    """Global batch sizes to choose among."""
    seed: int | None = None
    """Seeds the points, the weights and the order of the rows. Default: the recipe's."""
    epoch_fraction: float | None = None
    """Share of the training rows that one epoch visits, a fresh one each epoch. Default: the recipe's."""
    balanced: bool = False
    """Visit every count equally often."""
    price_per_hour: float | None = None
    """Price of one worker (GPU or CPU) for an hour, for the report's costs. Default: hours alone are shown."""
    track: tuple[TrackerName, ...] = ()
    """Also record each trial for tensorboard, or mlflow (an extra), or both."""
    run_dir: Path | None = None
    """Folder of the run. Default: a new one under runs/."""
    resume: bool = False
    """Go on with the search in --run-dir, as it was started; the other flags have no meaning then."""
    bucket: tyro.conf.OmitArgPrefixes[SourceArgs] = field(default_factory=SourceArgs)
    model: tyro.conf.OmitArgPrefixes[ModelArgs] = field(default_factory=ModelArgs)
    read: tyro.conf.OmitArgPrefixes[ReadArgs] = field(default_factory=ReadArgs)
    resources: tyro.conf.OmitArgPrefixes[ResourceArgs] = field(default_factory=ResourceArgs)

    def resolve(self) -> SearchConfig:
        """The search that these flags describe.

        Raises:
            ConfigError: the recipe is unknown, a value is out of range, or there is nothing to resume.
        """
        if self.resume:
            if self.run_dir is None:
                raise ConfigError("--resume needs --run-dir, the folder of the search to go on with")
            return read_search(self.run_dir)
        recipe = self.model.apply(self.bucket.apply(get_recipe(self.recipe)))
        max_epochs = recipe.max_epochs if self.max_epochs is None else self.max_epochs
        seed = recipe.seed if self.seed is None else self.seed
        fraction = recipe.epoch_fraction if self.epoch_fraction is None else self.epoch_fraction
        balanced = self.balanced or recipe.balanced
        low, high = self.lr or (recipe.optim.lr / 30, recipe.optim.lr * 3)
        return SearchConfig(
            recipe=replace(recipe, max_epochs=max_epochs, seed=seed, epoch_fraction=fraction, balanced=balanced),
            space=SearchSpace(
                dimensions={LR: Interval(low=low, high=high, log=True), BATCH_SIZE: Choice(values=self.batch_sizes)}
            ),
            budget=BudgetConfig(trials=self.num_trials),
            price_per_hour=self.price_per_hour,
            track=self.track,
            resources=self.resources,
            read=self.read.resolve(),
        )


def main() -> None:
    """Parse, then search."""
    with readable_errors():
        args = tyro.cli(SearchArgs, description=__doc__)
        config = args.resolve()
        check_trackers(config.track)
        run_dir = new_run_dir(args.run_dir, "search")
        if not args.resume:
            write_search(config, run_dir)
        from tune.driver import search  # heavy imports only after the flags are known to be good

        search(config, run_dir, resume=args.resume)


if __name__ == "__main__":
    main()
