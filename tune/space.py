"""What the trials of a search draw from: dotted fields of a recipe, each with its dimension.

A dimension is written as `log:1e-4:1e-1` (log-uniform between two bounds), `uniform:0:0.3`, `int:4:12` and
`logint:16:256` (whole numbers, both bounds included), or `resnet34,small_cnn` (one of some values).
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations, product
from typing import Any, ClassVar, Final, Literal

from pydantic import ConfigDict

from bintally.config import Recipe, with_settings
from bintally.errors import ConfigError
from data.args import absolute_weights

Value = bool | int | float | str | None
Point = dict[str, Value]
"""Value by dotted field of a recipe: what makes one trial."""

LR: Final = "optim.lr"
BATCH_SIZE: Final = "optim.global_batch_size"
WEIGHTS: Final = "model.weights"
MAX_EPOCHS: Final = "max_epochs"
MAX_CORNERS: Final = 10_000
_KINDS: Final = {"uniform": (False, False), "log": (True, False), "int": (False, True), "logint": (True, True)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One of some values."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    values: tuple[Value, ...]
    """In the order of the grid."""
    kind: Literal["choice"] = "choice"
    """Tells dimensions apart in a file."""

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("a choice of no values")
        if len(set(map(repr, self.values))) < len(self.values):
            raise ConfigError(f"a choice names a value twice: {', '.join(map(str, self.values))}")

    @property
    def is_single(self) -> bool:
        """Whether there is no choice."""
        return len(self.values) == 1

    def at(self, share: float) -> Value:
        """The value at a share in [0, 1) of the way."""
        return self.values[int(share * len(self.values))]

    def grid(self, num_steps: int) -> tuple[Value, ...]:  # noqa: ARG002  # an interval needs it
        """All of them."""
        return self.values

    def ends(self) -> tuple[Value, ...]:
        """What to check before anything starts."""
        return self.values


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A number between two bounds, both included."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    low: float
    high: float
    log: bool = False
    """Draw the logarithm evenly."""
    whole: bool = False
    """Whole numbers alone."""
    kind: Literal["interval"] = "interval"
    """Tells dimensions apart in a file."""

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ConfigError(f"bounds must be finite, the lower one first, not {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ConfigError(f"a logarithmic range needs a lower bound above 0, not {self.low:g}")
        if self.whole and (self.low % 1 or self.high % 1):
            raise ConfigError(f"a range of whole numbers needs whole bounds, not {self.low:g} and {self.high:g}")

    def at(self, share: float) -> Value:
        """The number at a share in [0, 1] of the way."""
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        value = low * (high / low) ** share if self.log else low + (high - low) * share
        if self.whole:
            return min(int(value), int(self.high))
        return {0.0: self.low, 1.0: self.high}.get(share, value)  # the bounds themselves, without rounding

    def grid(self, num_steps: int) -> tuple[Value, ...]:
        """So many numbers, evenly from bound to bound; one alone lies in the middle."""
        shares = [0.5] if num_steps == 1 else [step / (num_steps - 1) for step in range(num_steps)]
        return tuple(dict.fromkeys(self.at(share) for share in shares))

    def ends(self) -> tuple[Value, ...]:
        """What to check before anything starts."""
        return self.at(0.0), self.at(1.0)


Dimension = Choice | Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """What the trials draw from."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    dimensions: dict[str, Dimension]
    """By dotted field of the recipe."""

    def __post_init__(self) -> None:
        if not self.dimensions:
            raise ConfigError("space is empty: name at least one field, as --space optim.lr=log:1e-4:1e-1")

    def corners(self) -> list[Point]:
        """Each end of every two dimensions with each other, the rest at their first: no recipe rule has three fields.

        Raises:
            ConfigError: there are too many.
        """
        ends = {name: one.ends() for name, one in self.dimensions.items()}
        if sum(len(ends[one]) * len(ends[other]) for one, other in combinations(ends, 2)) > MAX_CORNERS:
            longest = max(ends, key=lambda name: len(ends[name]))
            raise ConfigError(
                f"space {longest}: {len(ends[longest])} values, and those of the other fields, make more than"
                f" {MAX_CORNERS:,} pairs to check; list fewer, or give a range"
            )
        first = {name: values[:1] for name, values in ends.items()}
        chosen: list[tuple[str, ...]] = [*combinations(ends, 2)] or [tuple(ends)]
        points = [point for names in chosen for point in self._crossed(first | {name: ends[name] for name in names})]
        return list({tuple(map(repr, point.values())): point for point in points}.values())

    def num_grid(self, num_steps: int) -> int:
        """How many points the grid has."""
        return math.prod(len(one.grid(num_steps)) for one in self.dimensions.values())

    def grid(self, num_steps: int) -> list[Point]:
        """All values of the choices, and so many of each interval, with one another."""
        return self._crossed({name: one.grid(num_steps) for name, one in self.dimensions.items()})

    def _crossed(self, values: dict[str, tuple[Value, ...]]) -> list[Point]:
        return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def parse_dimension(text: str) -> Dimension:
    """The dimension that a text as `log:1e-3:0.3` or `resnet34,small_cnn` describes.

    Raises:
        ConfigError: it is no dimension; the message says what one looks like.
    """
    kind, *bounds = text.split(":")
    if kind not in _KINDS:
        return Choice(values=tuple(_value(part) for part in text.split(",")))
    log, whole = _KINDS[kind]
    try:
        low, high = map(float, bounds)
    except ValueError:
        raise ConfigError(f"a range is {kind}:LOW:HIGH, as {kind}:1:10, not {text!r}") from None
    return Interval(low=low, high=high, log=log, whole=whole)


def parse_space(settings: Iterable[str]) -> dict[str, Dimension]:
    """The dimensions of texts as `optim.weight_decay=log:1e-5:1e-2`, by field.

    Raises:
        ConfigError: a text is no FIELD=DIMENSION, or two name the same field.
    """
    dimensions: dict[str, Dimension] = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals or not field or not text:
            raise ConfigError(f"space must be FIELD=DIMENSION, as {LR}=log:1e-4:1e-1, not {setting!r}")
        if field in dimensions:
            raise ConfigError(f"space names {field} twice")
        try:
            dimensions[field] = parse_dimension(text)
        except ConfigError as error:
            raise ConfigError(f"space {field}: {error}") from None
    weights = dimensions.get(WEIGHTS)
    if isinstance(weights, Choice):
        found = (absolute_weights(value) if isinstance(value, str) else value for value in weights.values)
        dimensions[WEIGHTS] = Choice(values=tuple(found))
    return dimensions


def recipe_at(recipe: Recipe, point: Point) -> Recipe:
    """The recipe with the values of a point.

    Raises:
        ConfigError: a field is unknown, or a value is out of range.
    """
    return with_settings(recipe, [f"{field}={json.dumps(value)}" for field, value in point.items()])


def value_at(recipe: Recipe, field: str) -> Any:  # noqa: ANN401  # a field can hold anything
    """What a dotted field of a recipe holds.

    Raises:
        ConfigError: there is no such field.
    """
    value: Any = asdict(recipe)
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ConfigError(f"space names {field}, which is no field of a recipe; a field is for example {LR}")
        value = value[part]
    return value


def epochs_at(point: Point, longest: int) -> int:
    """Epochs of a trial that runs to its end: its own where the space varies them, else as many as the longest."""
    own = point.get(MAX_EPOCHS)
    return own if isinstance(own, int) else longest


def describe_point(point: Point) -> str:
    """In few words, as `lr 0.0031, batch 32`."""
    short = {LR: "lr", BATCH_SIZE: "batch"}
    return ", ".join(
        f"{short.get(field, field.rpartition('.')[2])} {value:.2g}"
        if isinstance(value, float)
        else f"{short.get(field, field.rpartition('.')[2])} {value}"
        for field, value in point.items()
    )


def _value(text: str) -> Value:
    try:
        value: Value = json.loads(text)
    except ValueError:
        return text
    return value
