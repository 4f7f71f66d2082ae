"""What a batch transform counted, beside what the records say."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Self

import numpy as np
import torch

from bintally.errors import AwsError, AwsNotFoundError, LabelError
from bintally.labels import parse_record
from bintally.metrics import CountTally
from bintally.scores import confusion_of, nll_of
from serve.aws.calls import NUM_CONNECTIONS, Aws
from serve.aws.plan import split_uri
from serve.aws.transform import list_keys


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One photo that can be scored."""

    expected: int
    probabilities: tuple[float, ...]
    """Of the counts 0..max_count."""
    counted: int
    version: str
    """Of the model that counted."""

    @classmethod
    def of(cls, answer: Mapping[str, Any], expected: int) -> Self:
        """A row from what the endpoint's server answers.

        Raises:
            KeyError, TypeError, ValueError: the answer is none.
        """
        probabilities = answer["probabilities"]
        return cls(
            expected=expected,
            probabilities=tuple(float(probabilities[str(count)]) for count in range(len(probabilities))),
            counted=int(answer["count"]),
            version=str(answer["model"]["version"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where what belongs to a job lies, as s3://bucket/folder/."""

    photos: str
    answers: str
    records: str

    def read_row(self, aws: Aws, answer_key: str) -> Row | str:
        """The row of one answer, or the reason why it has none.

        Raises:
            AwsError: AWS refuses the answer, or cannot be reached.
        """
        answers, _ = split_uri("output", self.answers)
        try:
            expected = parse_record(self._read_record(aws, answer_key)).expected_quantity
            answer = json.loads(aws.read("s3", "get_object", Bucket=answers, Key=answer_key))
            if "problem" in answer:
                return str(answer["problem"]["code"])
            return "count_above_max" if expected >= len(answer["probabilities"]) else Row.of(answer, expected)
        except LabelError as error:
            return error.reason
        except (ValueError, KeyError, TypeError):
            return "unreadable_answer"

    def _read_record(self, aws: Aws, answer_key: str) -> bytes:
        records, folder = split_uri("records", self.records)
        bin_id = PurePosixPath(answer_key.removesuffix(".out")).stem
        try:
            return aws.read("s3", "get_object", Bucket=records, Key=f"{folder}{bin_id}.json")
        except AwsNotFoundError:
            raise LabelError("missing_label") from None
        except AwsError as error:
            if error.code != "AccessDenied":
                raise
            # S3 says so also of an object that is not there, to those who may not list its bucket.
            raise LabelError("missing_or_forbidden_label") from None


def evaluate(aws: Aws, places: Places, photos: Sequence[str]) -> dict[str, Any]:
    """Figures of a job, JSON-ready, as `CountTally.summary` and `train/evaluate.py` have them.

    `left_out` counts by reason what was not scored: reasons of records as in training, codes of problems that the
    server answered, and `missing_answer`.

    Args:
        aws: where.
        places: of the job.
        photos: keys of all that the job was to count.

    Raises:
        AwsError: no photo can be scored, or AWS refuses or cannot be reached.
    """
    keys = [key for key in list_keys(aws, places.answers) if key.endswith(".out")]
    aws.say(f"scoring {len(keys):,} answers")
    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        results = list(pool.map(lambda key: places.read_row(aws, key), keys))
    left_out = Counter(one for one in results if isinstance(one, str))
    left_out["missing_answer"] = max(len(photos) - len(keys), 0)
    told = {reason: number for reason, number in sorted(left_out.items()) if number}
    rows = [one for one in results if isinstance(one, Row)]
    if not rows:
        raise AwsError(f"no photo under {places.photos} can be scored with records of {places.records}: {told}")
    return {
        "photos": places.photos,
        "answers": places.answers,
        "records": places.records,
        "versions": sorted({row.version for row in rows}),
        "num_photos": len(photos),
        "left_out": told,
        **_tally(rows).summary(),
    }


def _tally(rows: Sequence[Row]) -> CountTally:
    probabilities = np.array([row.probabilities for row in rows])
    counts, counted = (np.array([getattr(row, name) for row in rows]) for name in ("expected", "counted"))
    confusion = confusion_of(counts, counted, probabilities.shape[1])
    return CountTally(
        confusion=torch.from_numpy(confusion.astype(np.int64)), nll_sum=float(nll_of(probabilities, counts).sum())
    )


def format_figures(figures: Mapping[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"{figures['num_images']:,} of {figures['num_photos']:,} photos, by model {', '.join(figures['versions'])}",
        *(f"  left out        {number:,} {reason}" for reason, number in figures["left_out"].items()),
        f"  accuracy        {figures['accuracy']:6.1%}",
        f"  majority class  {figures['majority_accuracy']:6.1%}, random {figures['random_accuracy']:.1%}",
        f"  within one      {figures['within_one']:6.1%}",
        f"  rmse, mae       {figures['rmse']:6.2f} {figures['mae']:.2f} items",
        f"  nll             {figures['nll']:6.3f} nats",
        "  count  images  accuracy  rmse",
    ]
    lines += [
        f"  {count:>5}  {row['num_images']:6,}  {row['accuracy']:8.1%}  {row['rmse']:.2f}"
        for count, row in figures["per_count"].items()
    ]
    return "\n".join(lines)
