"""Audits: the photos of a record table are counted in the background, and the bins come back as a recount queue.

All audits of a server share a few places, both for photos in memory and for photos that are counted, far below what it
admits; a request never waits for more than these. The work ends with the generator of its lines.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, get_args

import numpy as np

from bintally.errors import ImageError, SourceError
from bintally.verify import Decision, Verdict, recount_order
from serve.audit_bucket import AuditBucket, no_photo, open_bucket
from serve.audit_schema import AuditBin, AuditLine, AuditProgress, AuditSummary
from serve.audit_table import AuditRecord, RecordTable
from serve.predictor import Counted, Predictor
from serve.problems import Refusal, problem_of, refusal_of
from serve.schema import CountRange, ModelName, Problem, VerifyThresholds
from serve.service import CounterService

MAX_AUDITS: Final = 4  # at once; each holds up to some 100 MB of records and counts
MAX_PHOTOS: Final = 16  # of all audits, on their way from the bucket, waiting or counted; hides 30 ms of latency
MAX_UNREACHABLE: Final = 20  # photos in a row that the bucket does not give: the others will not come, either
PROGRESS_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Judged:
    """A counted photo beside its record."""

    counted: Counted
    verdict: Verdict
    flags: tuple[str, ...]


class Auditor:
    """What all audits of a server share."""

    def __init__(self, service: CounterService) -> None:
        settings = service.settings
        self.service = service
        self.num_running = 0
        self.photos = asyncio.Semaphore(MAX_PHOTOS)
        self.counting = asyncio.Semaphore(max(1, min(settings.max_batch_size // 2, settings.max_in_flight // 4)))

    def check_room(self) -> None:
        """Refuse early what would be refused after its body has been read.

        Raises:
            Refusal: `audit_is_off`, or `overloaded`.
            SourceNotFoundError: the folder of a file:// source does not exist.
        """
        open_bucket(self.service.settings)
        if self.num_running >= MAX_AUDITS:
            raise Refusal("overloaded", f"{self.num_running} audits are running; try again")

    async def begin(self, table: RecordTable, model: str | None, request_id: str) -> "Audit":
        """An audit that is ready to give lines; the photos in its folder are listed.

        Raises:
            Refusal: the model is unknown, the folder holds no photos or too many, or too many audits are running.
            SourceError: the bucket cannot be listed.
        """
        name, predictor = self.service.choose(model, request_id)
        bucket = open_bucket(self.service.settings)
        photos = None if table.folder is None else frozenset(await bucket.photos_in(table.folder))
        self.check_room()
        return Audit(self, bucket, table, photos, name, predictor, request_id)


@dataclass(slots=True)
class Audit:
    """One audit, all of it by the same model, whatever is loaded meanwhile."""

    auditor: Auditor
    bucket: AuditBucket
    table: RecordTable
    photos: frozenset[str] | None
    """Keys of all photos in the table's folder; None if it has no folder."""
    name: str
    predictor: Predictor
    request_id: str
    _results: dict[str, Judged | Problem] = field(default_factory=dict)
    """By key, in the order in which they come. No exceptions, which would keep the frames that they went through."""
    _num_unreachable: int = 0
    """Of the last photos, in a row."""
    _begun: float = field(default_factory=time.monotonic)
    _no_photo: Problem = field(init=False)
    """One for all records of photos that are not listed."""

    def __post_init__(self) -> None:
        self._no_photo = self._problem(no_photo())

    async def lines(self) -> AsyncGenerator[AuditLine]:
        """Count, then give the queue. Closing the generator ends all work.

        Raises:
            SourceError: the bucket does not give its photos any more.
            CheckpointError: the model answered NaN.
        """
        outcome = "left"
        self.auditor.num_running += 1
        try:
            async with aclosing(self._count()) as lines:
                async for progress in lines:
                    yield progress
            for line in self._queue(await asyncio.to_thread(self._order)):
                yield line
            outcome = "done"
            yield self._summary()
        except Exception:
            outcome = "failed"
            raise
        finally:
            self.auditor.num_running -= 1
            self.auditor.service.instruments.audits.labels(outcome).inc()

    async def _count(self) -> AsyncGenerator[AuditProgress]:
        todo = iter(self.table.records)
        workers = [asyncio.ensure_future(self._work(todo)) for _ in range(MAX_PHOTOS)]
        pending = set(workers)
        try:
            while pending:
                yield self._progress()
                done, pending = await asyncio.wait(pending, timeout=PROGRESS_S, return_when=asyncio.FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
            yield self._progress()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, todo: Iterator[AuditRecord]) -> None:
        for record in todo:
            async with self.auditor.photos:
                self._note(record.key, await self._judge(record))

    async def _judge(self, record: AuditRecord) -> Judged | Problem:
        if self.photos is not None and record.key not in self.photos:
            await asyncio.sleep(0)  # thousands of these would hold up requests
            return self._no_photo
        service = self.auditor.service
        try:
            data = await self.bucket.fetch(record.key, service.settings.max_body_bytes)
            async with self.auditor.counting:
                answer = await service.count_when_quiet(data, self.name, self.predictor)
        except (ImageError, Refusal) as error:
            self._num_unreachable = 0  # the bucket has answered, if only that there is no such photo
            service.instruments.refused.labels(refusal_of(error).code).inc()
            return self._problem(error)
        except SourceError as error:
            self._num_unreachable += 1
            if self._num_unreachable >= MAX_UNREACHABLE:
                raise
            return self._problem(error)
        self._num_unreachable = 0
        return Judged(answer.counted, service.verify(answer, record.expected_quantity), answer.quality.flags)

    def _problem(self, error: Exception) -> Problem:
        return problem_of(refusal_of(error), self.request_id)

    def _note(self, key: str, result: Judged | Problem) -> None:
        self._results[key] = result
        outcome = result.code if isinstance(result, Problem) else result.verdict.decision
        self.auditor.service.instruments.audited.labels(outcome).inc()

    def _progress(self) -> AuditProgress:
        return AuditProgress(
            num_done=len(self._results), num_records=len(self.table.records), elapsed_s=self._elapsed_s()
        )

    def _elapsed_s(self) -> float:
        return round(time.monotonic() - self._begun, 3)

    def _order(self) -> list[AuditRecord]:
        """The records as they are to be counted again: ranked, then those without a count."""
        results = [self._results[record.key] for record in self.table.records]
        judged = [place for place, result in enumerate(results) if isinstance(result, Judged)]
        others = [place for place, result in enumerate(results) if not isinstance(result, Judged)]
        if judged:
            probabilities = np.array([one.counted.probabilities for one in results if isinstance(one, Judged)])
            expected = np.array([self.table.records[place].expected_quantity for place in judged])
            judged = [judged[place] for place in recount_order(probabilities, expected)]
        return [self.table.records[place] for place in judged + others]

    def _queue(self, records: list[AuditRecord]) -> Iterator[AuditBin]:
        """The lines of all bins; photos without a record come last."""
        for rank, record in enumerate(records, start=1):
            result = self._results[record.key]
            if isinstance(result, Judged):
                yield _judged_bin(rank, record, result)
            else:
                yield AuditBin(rank=rank, **record._asdict(), problem=result)
        no_record = self._problem(Refusal("no_record", "no record names this photo"))
        for rank, key in enumerate(self._unrecorded(), start=len(records) + 1):
            yield AuditBin(rank=rank, key=key, bin_id=None, expected_quantity=None, problem=no_record)

    def _unrecorded(self) -> list[str]:
        return sorted((self.photos or frozenset()).difference(record.key for record in self.table.records))

    def _summary(self) -> AuditSummary:
        results = self._results.values()
        verdicts = Counter(one.verdict.decision for one in results if isinstance(one, Judged))
        problems = Counter(one.code for one in results if isinstance(one, Problem))
        problems["no_record"] = len(self._unrecorded())
        thresholds = self.predictor.thresholds
        return AuditSummary(
            num_records=len(self.table.records),
            verdicts={decision: verdicts[decision] for decision in get_args(Decision)},
            problems=dict(sorted((+problems).items())),
            thresholds=None if thresholds is None else VerifyThresholds.model_validate(thresholds),
            model=ModelName(name=self.name, version=self.predictor.version, runtime=self.predictor.runtime.name),
            elapsed_s=self._elapsed_s(),
            request_id=self.request_id,
        )


def _judged_bin(rank: int, record: AuditRecord, judged: Judged) -> AuditBin:
    counted, verdict = judged.counted, judged.verdict
    known = counted.low is not None and counted.high is not None
    return AuditBin(
        rank=rank,
        **record._asdict(),
        count=counted.count,
        expected_value=counted.expected_value,
        range=CountRange(low=counted.low or 0, high=counted.high or 0) if known else None,
        verdict=verdict.decision,
        p_match=verdict.p_match,
        reason=verdict.reason,
        flags=list(judged.flags),
    )
