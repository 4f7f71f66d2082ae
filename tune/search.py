"""Search the fields of a recipe with ASHA: learning rate and batch size, and any other.

    python tune/search.py                                     # the public ABID bucket, anonymously
    python tune/search.py --recipe demo --source file:///absolute/bucket --num-trials 8
    python tune/search.py --space model.backbone=resnet18,resnet34 optim.weight_decay=log:1e-5:1e-2 --objective accuracy
    python tune/search.py --preset capstone-b --max-total-epochs 40
    python tune/search.py --run-dir runs/x --resume           # go on with an interrupted search; s3://bucket/x, too

Leaves in the run folder: best.json (a recipe for train/fit.py), checkpoint/ (for serve and train/evaluate.py),
curves.png, trials.jsonl, results.json, drops.json, and of each trial health.json, profile.html and curves.png.
"""

from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import tyro

from bintally.cli import readable_errors
from bintally.config import Recipe, with_settings
from bintally.errors import ConfigError
from bintally.recipes import get_recipe
from data.args import ModelArgs, ReadArgs, ResourceArgs, SourceArgs, is_remote
from train.mirror import open_run
from train.tracking import TrackerName, check_trackers
from tune.config import AshaConfig, BudgetConfig, Sampler, SearchConfig, read_search, write_search
from tune.objective import parse_objective
from tune.presets import Preset, get_preset
from tune.samplers import settled
from tune.space import BATCH_SIZE, LR, Choice, Dimension, Interval, SearchSpace, parse_space, recipe_at, value_at


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchArgs:
    """Search learning rate and batch size, or any fields of a recipe, over multi-worker trainings."""

    preset: Literal["capstone-a", "capstone-b", "capstone-c", "capstone-d"] | None = None
    """A search that a report describes; other flags override single settings. capstone-a: lr 0.001-0.1, batch 16/32/64,
    2-6 epochs; -b: five epochs of a tenth of the rows, for accuracy; -c: lr 0.005-0.01, batch 16-128, 2-5 epochs; -d:
    -b on balanced, weighted rows with SGD. All on report_resnet50, each trial to its end unless --asha.
    tune/presets.py says what is known of each."""
    recipe: str | None = None
    """Named recipe of bintally/recipes.py that all trials share. Default: the preset's, or baseline_resnet34."""
    space: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """FIELD=DIMENSION of any field of the recipe, beside the learning rate and the batch size or instead of them:
    log:LOW:HIGH, uniform:LOW:HIGH, int:LOW:HIGH, logint:LOW:HIGH, or values such as 16,32. A single value
    fixes the field."""
    lr: tuple[float, float] | None = None
    """Bounds of the learning rate, drawn log-uniformly. Default: a thirtieth to thrice the recipe's."""
    batch_sizes: tuple[int, ...] | None = None
    """Global batch sizes to choose among. Default: 32 64 128."""
    sampler: Sampler = "random"
    """How points are chosen: random; grid, all of them; tpe, near good ones (needs Optuna: the extra tpe); bohb, like
    tpe, but trials are compared at the rung that they reached."""
    grid_steps: int = 4
    """Of grid: values of each range, from bound to bound."""
    objective: str | None = None
    """What the best trial is best at, what early stopping looks at and which checkpoint is kept: nll, accuracy,
    within_one, rmse, mae, train_loss, or any reported figure with :min or :max. Default: nll."""
    num_trials: int = 16
    """Points of the space to try; a grid tries all it has."""
    max_epochs: int | None = None
    """Epochs of a trial that is not stopped early. Default: the recipe's."""
    max_total_epochs: int | None = None
    """Epochs of all trials together, after which none begins another. Default: no limit."""
    time_budget_s: float | None = None
    """Seconds after which no trial begins another epoch; a resumed search has them anew. Default: no limit."""
    grace_epochs: int | None = None
    """No trial is stopped early before this epoch. Default: a sixth of the epochs, rounded up."""
    reduction_factor: float = 3.0
    """One in so many goes on from a rung; the next rung lies so many times as far."""
    brackets: int = 1
    """Ladders to which trials are dealt out; each begins a rung later than the one before."""
    asha: tyro.conf.FlagCreatePairsOff[bool] = False
    """Stop trials early. The default, but not with --preset, since the reports ran each trial to its end."""
    no_asha: tyro.conf.FlagCreatePairsOff[bool] = False
    """Let every trial run to its end."""
    micro_batch_on_oom: bool = False
    """Take fewer photos at once where a batch does not fit into memory, and accumulate the gradients."""
    final_seeds: int = 3
    """Trainings of the winner, each with another seed, after the search; each of their epochs visits all rows."""
    final: tyro.conf.FlagCreatePairsOff[bool] = True
    """Keep the winner's trial, and train nothing after the search."""
    seed: int | None = None
    """Seeds the points, the weights and the order of the rows. Default: the recipe's."""
    epoch_fraction: float | None = None
    """Share of the training rows that one epoch of a trial visits, a fresh one each epoch. Default: the recipe's."""
    balanced: bool = False
    """Visit every count equally often."""
    price_per_hour: float | None = None
    """Price of one worker (GPU or CPU) for an hour, for the report's costs. Default: hours alone are shown."""
    track: tuple[TrackerName, ...] = ()
    """Also record each trial for tensorboard, or mlflow (an extra), or both."""
    run_dir: str | None = None
    """Folder of the run, or s3://bucket/prefix. Default: a new one under runs/."""
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
            return read_search(Path(self.run_dir))
        if self.asha and self.no_asha:
            raise ConfigError("--asha and --no-asha exclude each other; give one of them")
        preset = get_preset(self.preset) if self.preset else Preset(recipe="baseline_resnet34", asha=True)
        recipe = self._recipe(preset)
        dimensions = self._dimensions(recipe, preset)
        fixed = {name: one.values[0] for name, one in dimensions.items() if isinstance(one, Choice) and one.is_single}
        try:
            recipe = recipe_at(recipe, fixed)
        except ConfigError as error:
            raise ConfigError(f"space: {str(error).removeprefix('set: ')}") from None
        config = SearchConfig(
            recipe=recipe,
            space=SearchSpace(dimensions={name: one for name, one in dimensions.items() if name not in fixed}),
            budget=BudgetConfig(trials=self.num_trials, epochs=self.max_total_epochs, time_s=self.time_budget_s),
            sampler=self.sampler,
            grid_steps=self.grid_steps,
            objective=parse_objective(self.objective) if self.objective is not None else preset.objective,
            asha=AshaConfig(
                grace_epochs=self.grace_epochs,
                reduction_factor=self.reduction_factor,
                brackets=self.brackets,
                enabled=self.asha or (preset.asha and not self.no_asha),
            ),
            final_seeds=self.final_seeds if self.final else 0,
            price_per_hour=self.price_per_hour,
            track=self.track,
            resources=self.resources,
            read=self.read.resolve(),
        )
        return settled(config)

    def _recipe(self, preset: Preset) -> Recipe:
        """What all trials share, but for what the space fixes."""
        named = with_settings(get_recipe(self.recipe or preset.recipe), preset.settings)
        recipe = self.model.apply(self.bucket.apply(named))
        settings = [f"{name}={value}" for name, value in self._fixed().items() if value is not None]
        settings += ["compute.fit_memory=true"] if self.micro_batch_on_oom else []
        return with_settings(replace(recipe, balanced=self.balanced or recipe.balanced), settings)

    def _fixed(self) -> dict[str, float | None]:
        """Fields of the recipe that flags of their own set; None if they do not."""
        return {"max_epochs": self.max_epochs, "seed": self.seed, "epoch_fraction": self.epoch_fraction}

    def _dimensions(self, recipe: Recipe, preset: Preset) -> dict[str, Dimension]:
        """What the trials draw, and what --space fixes: defaults, then the preset, then the flags."""
        given = parse_space(chain.from_iterable(self.space))
        flags: dict[str, tuple[str, object]] = {LR: ("--lr", self.lr), BATCH_SIZE: ("--batch-sizes", self.batch_sizes)}
        flags |= {name: (f"--{name.replace('_', '-')}", value) for name, value in self._fixed().items()}
        for name in given:
            value_at(recipe, name)  # refuses what no recipe has
            if name in flags and flags[name][1] is not None:
                raise ConfigError(f"space names {name}, which {flags[name][0]} sets, too; give one of them")
        dimensions: dict[str, Dimension] = {
            LR: Interval(low=recipe.optim.lr / 30, high=recipe.optim.lr * 3, log=True),
            BATCH_SIZE: Choice(values=(32, 64, 128)),
        }
        dimensions |= {name: one for name, one in preset.space.items() if flags.get(name, ("", None))[1] is None}
        return dimensions | self._shorthands() | given

    def _shorthands(self) -> dict[str, Dimension]:
        """The dimensions of --lr and --batch-sizes, if they are given."""
        dimensions: dict[str, Dimension] = {}
        flag = "lr"
        try:
            if self.lr is not None:
                dimensions[LR] = Interval(low=self.lr[0], high=self.lr[1], log=True)
            flag = "batch_sizes"
            if self.batch_sizes is not None:
                dimensions[BATCH_SIZE] = Choice(values=self.batch_sizes)
        except ConfigError as error:
            raise ConfigError(f"{flag}: {error}") from None
        return dimensions


def main() -> None:
    """Parse, then search."""
    with readable_errors():
        args = tyro.cli(SearchArgs, description=__doc__)
        in_s3 = args.run_dir is not None and is_remote(args.run_dir, "run_dir")
        if not (in_s3 and args.resume):
            check_trackers(args.resolve().track)  # a refused command leaves no folder
        with open_run(args.run_dir, "search", must_exist=args.resume) as run:
            config = replace(args, run_dir=str(run.folder)).resolve()
            check_trackers(config.track)
            if not args.resume:
                write_search(config, run.folder, run.place)
                if config.budget.trials != args.num_trials:
                    print(f"the space has {config.budget.trials} points, so there are as many trials")
            from tune.driver import search  # heavy imports only after the flags are known to be good

            search(config, run.folder, resume=args.resume, place=run.place)


if __name__ == "__main__":
    main()
