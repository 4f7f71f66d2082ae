"""The lines that an audit answers with, one JSON object each. Clients import this, so it imports pydantic alone."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from serve.schema import CountRange, ModelName, Problem, VerifyThresholds


class AuditProgress(BaseModel):
    """How far the audit is; comes first, and at least once a second while photos are counted."""

    kind: Literal["progress"] = "progress"
    num_done: int
    """Records whose photo was counted, or cannot be."""
    num_records: int
    elapsed_s: float


class AuditBin(BaseModel):
    """One bin of the recount queue."""

    kind: Literal["bin"] = "bin"
    rank: int
    """1 is to be counted first. Bins that were not counted come last, in the order of the table."""
    key: str
    """Of the photo, in the bucket of the server."""
    bin_id: str | None
    """As the record gave it."""
    expected_quantity: int | None
    """Null if the photo has no record."""
    count: int | None = None
    """The most probable count; null, as all that follows, if there is a problem."""
    expected_value: float | None = None
    """Mean of the distribution, in items."""
    range: CountRange | None = None
    """Null if the checkpoint is not calibrated."""
    verdict: Literal["match", "mismatch", "review"] | None = None
    p_match: float | None = None
    """Probability that the bin holds the expected quantity; null where the model does not count so far."""
    reason: str | None = None
    """Of the verdict; for programs, stable."""
    flags: list[str] = []
    """Why the count may be worth less: `dark`, `blurred`, `too_small`."""
    problem: Problem | None = None
    """Why there is no count: `no_photo`, `no_record`, `truncated_image`, ..."""


class AuditSummary(BaseModel):
    """The last line of an audit that came to its end."""

    kind: Literal["summary"] = "summary"
    num_records: int
    verdicts: dict[str, int]
    """Records by verdict: match, mismatch, review."""
    problems: dict[str, int]
    """Bins without a count, by the code of their problem."""
    thresholds: VerifyThresholds | None
    """Null if the checkpoint is not calibrated, and every verdict `review`."""
    model: ModelName
    elapsed_s: float
    request_id: str


class AuditError(BaseModel):
    """The last line of an audit that failed after its first line."""

    kind: Literal["error"] = "error"
    problem: Problem


AuditLine = Annotated[AuditProgress | AuditBin | AuditSummary | AuditError, Field(discriminator="kind")]
