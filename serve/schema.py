"""What the API answers. Clients import this, so it imports pydantic alone."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from bintally.quality import PhotoQuality
    from bintally.verify import Verdict
    from serve.predictor import Counted, Predictor
    from serve.service import Answer

MS = 1000


class Problem(BaseModel):
    """The body of every answer that is an error, as RFC 9457 has it."""

    type: str
    """`urn:bintally:problem:` and the code."""
    title: str
    """The phrase of the status."""
    status: int
    detail: str
    """What is wrong and what to change, for people."""
    code: str
    """For programs, stable; for example `truncated_image`."""
    request_id: str
    """Also in the header X-Request-ID, and in the server's log."""


class CountRange(BaseModel):
    """Counts that hold the expected quantity of so many records, over all photos like those of the calibration."""

    low: int
    high: int
    coverage: float = 0.9


class Photo(BaseModel):
    """What the file is like."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    brightness: float
    """Mean, 0 black to 255 white."""
    sharpness: float
    """Variance of the Laplacian over the variance; low when blurred, or when plain."""
    flags: list[str]
    """Why the count may be worth less: `dark`, `blurred`, `too_small`."""


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    version: str
    """First 12 hex digits of the SHA-256 of its weights."""
    runtime: str
    """`onnx_int8`, `onnx_fp32` or `eager`."""


class Timing(BaseModel):
    """What a photo took."""

    decode_ms: float
    count_ms: float
    """From decoded to counted, with the wait for a batch."""


class Count(BaseModel):
    """What a model says of one photo."""

    count: int
    """The most probable count."""
    probabilities: dict[str, float]
    """Of each count "0".."max_count", calibrated if the checkpoint is; they add up to 1."""
    expected_value: float
    """Mean of the distribution, in items."""
    range: CountRange | None
    """Null if the checkpoint is not calibrated."""
    photo: Photo
    model: ModelName


class CountAnswer(Count):
    """The count of one photo."""

    timing: Timing
    request_id: str


class VerifyThresholds(BaseModel):
    """A p_match above `match`, of a quantity in the range, is a match; below `mismatch` a mismatch; else for people."""

    model_config = ConfigDict(from_attributes=True)

    match: float
    mismatch: float


class RecordVerdict(BaseModel):
    """Whether a photo agrees with its record."""

    verdict: Literal["match", "mismatch", "review"]
    p_match: float | None
    """Probability that the bin holds the expected quantity; null where the model does not count so far."""
    reason: str
    """For programs, stable."""
    explanation: str
    """For people."""
    thresholds: VerifyThresholds | None
    """Null if the checkpoint is not calibrated, and every verdict `review`."""
    expected_quantity: int
    bin_id: str | None


class VerifyAnswer(RecordVerdict):
    """Whether a photo agrees with its record."""

    counted: CountAnswer


class BatchItem(BaseModel):
    """One photo of several: its count, or why there is none."""

    index: int
    """Its place in the request, from 0."""
    name: str
    """Of the file, if the form gave one."""
    counted: CountAnswer | None
    problem: Problem | None


class BatchAnswer(BaseModel):
    """The counts of several photos."""

    num_counted: int
    num_failed: int
    items: list[BatchItem]
    request_id: str


class ModelAnswer(BaseModel):
    """A model's card."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: str
    recipe: str
    backbone: str
    image_size: int
    max_count: int
    runtime: str
    runtime_reason: str
    metrics: dict[str, Any]
    """Figures that were measured with these weights."""
    calibration: dict[str, Any] | None
    """Temperature and thresholds, and the photos that they were fitted on."""


class ModelsAnswer(BaseModel):
    """All models of the server."""

    models: list[ModelName]


class Live(BaseModel):
    """The server runs."""

    status: Literal["ok"] = "ok"


class Ready(Live):
    """The first model has counted a photo within the last second: a client's, or else a probe."""

    model: ModelName


def name_of(answer: "Answer") -> ModelName:
    """Which model gave an answer."""
    return model_name(answer.model, answer.predictor)


def model_name(name: str, predictor: "Predictor") -> ModelName:
    """A model, as answers name it."""
    return ModelName(name=name, version=predictor.version, runtime=predictor.runtime.name)


def count_of(counted: "Counted", quality: "PhotoQuality", model: ModelName) -> Count:
    """A counted photo, without what one request adds to it."""
    known = counted.low is not None and counted.high is not None
    return Count(
        count=counted.count,
        probabilities={str(count): p for count, p in enumerate(counted.probabilities)},
        expected_value=counted.expected_value,
        range=CountRange(low=counted.low or 0, high=counted.high or 0) if known else None,
        photo=Photo(
            width=quality.width,
            height=quality.height,
            brightness=round(quality.brightness, 1),
            sharpness=round(quality.sharpness, 3),
            flags=list(quality.flags),
        ),
        model=model,
    )


def count_answer(answer: "Answer", request_id: str) -> CountAnswer:
    """A counted photo as it goes out."""
    return CountAnswer(
        **dict(count_of(answer.counted, answer.quality, name_of(answer))),
        timing=Timing(decode_ms=round(answer.decode_s * MS, 2), count_ms=round(answer.count_s * MS, 2)),
        request_id=request_id,
    )


def verdict_of(verdict: "Verdict", predictor: "Predictor", expected_quantity: int, bin_id: str | None) -> RecordVerdict:
    """A verdict, without the count that it rests on."""
    thresholds = predictor.thresholds
    return RecordVerdict(
        verdict=verdict.decision,
        p_match=verdict.p_match,
        reason=verdict.reason,
        explanation=verdict.sentence,
        thresholds=None if thresholds is None else VerifyThresholds.model_validate(thresholds),
        expected_quantity=expected_quantity,
        bin_id=bin_id,
    )


def verify_answer(
    answer: "Answer", verdict: "Verdict", expected_quantity: int, bin_id: str | None, request_id: str
) -> VerifyAnswer:
    """A verdict as it goes out."""
    return VerifyAnswer(
        **dict(verdict_of(verdict, answer.predictor, expected_quantity, bin_id)),
        counted=count_answer(answer, request_id),
    )
