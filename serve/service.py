"""What a server does between HTTP and the models: who is admitted, which model answers, what is told of it.

A photo is decoded by itself in a thread, so that a bad one harms no other, then counted in a batch by the engine.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from zlib import crc32

from bintally.errors import BinTallyError, CheckpointError
from bintally.quality import PhotoQuality
from bintally.verify import Verdict
from serve.bodies import BodyReader
from serve.models import load_models
from serve.predictor import Counted, Photo, Predictor, probe_photo
from serve.problems import Refusal
from serve.settings import DEFAULT_MODEL, Settings, read_tokens
from serve.telemetry import Instruments, server_log

NUM_DECODERS = 2  # a photo of 25 MP takes up to 100 MB while it is decoded
READY_FOR_S = 8.0  # so long an answer shows that the first model counts; a batch of a slow one takes some seconds
HANGS_S = 30.0  # a batch that takes longer
LOOK_AGAIN_S = 0.01  # an audit that found no room


@dataclass(frozen=True, slots=True)
class Job:
    """A photo that waits for a model."""

    predictor: Predictor
    photo: Photo


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A counted photo, and what it took."""

    counted: Counted
    quality: PhotoQuality
    model: str
    predictor: Predictor
    decode_s: float
    count_s: float
    """From decoded to counted, with the wait for a batch."""


Engine = Callable[[Job], Awaitable[Counted]]
"""Counts one photo, together with others that come at the same time."""


def count_jobs(jobs: list[Job], instruments: Instruments) -> list[Counted | CheckpointError]:
    """Count a batch; photos of one model in one forward pass. One that answers NaN fails its own photos alone."""
    counted: dict[int, Counted | CheckpointError] = {}
    for predictor in {id(job.predictor): job.predictor for job in jobs}.values():
        mine = [place for place, job in enumerate(jobs) if job.predictor is predictor]
        instruments.batch_photos.observe(len(mine))
        try:
            counted |= zip(mine, predictor.count([jobs[place].photo for place in mine]), strict=True)
        except CheckpointError as error:
            counted |= dict.fromkeys(mine, error)
    return [counted[place] for place in range(len(jobs))]


class CounterService:
    """Counts photos for the API, whatever the engine."""

    def __init__(
        self, settings: Settings, models: dict[str, Predictor], instruments: Instruments, device: str = "cpu"
    ) -> None:
        """Serve loaded models.

        Args:
            settings: limits and roles.
            models: by name, as `load_models` gives them.
            instruments: take the metrics.
            device: of the models that a reload brings.
        """
        self._device = device
        self.instruments = instruments
        self.bodies = BodyReader(timeout_s=settings.body_timeout_s)
        self.engine: Engine | None = None
        self._decoders = ThreadPoolExecutor(NUM_DECODERS, "decode")
        self.background: set[asyncio.Task[None]] = set()
        """Work that no request waits for."""
        self._num_in_flight = 0
        self._batch_began: float | None = None
        self._adopt(settings, models)

    def _adopt(self, settings: Settings, models: dict[str, Predictor]) -> None:
        self.tokens = tuple(token.encode() for token in read_tokens(settings.token_file))
        self.settings = settings
        self.models = models
        self.bodies.timeout_s = settings.body_timeout_s
        self._is_well, self._ready_until = True, 0.0  # each has counted a photo when it was loaded
        self.instruments.tell_models((name, one.version, one.runtime.name) for name, one in models.items())
        for name, one in models.items():
            fields = {"model": name, "version": one.version, "runtime": one.runtime.name, "why": one.runtime.reason}
            server_log.info("model %s is loaded", name, extra={"fields": fields})

    async def reload(self, settings: Settings) -> None:
        """Load the models of new settings and take them all at once; requests under way end with the old ones.

        Raises:
            BinTallyError: a model cannot be loaded; the server goes on as it was.
        """
        self._adopt(settings, await asyncio.to_thread(load_models, settings, self._device))

    def choose(self, name: str | None, request_id: str) -> tuple[str, Predictor]:
        """The model that a request asks for; if it names none, the first one, or the canary by its share.

        Raises:
            Refusal: `unknown_model`.
        """
        settings = self.settings
        if name is None:
            drawn = crc32(request_id.encode()) / 2**32 < settings.canary_share
            name = settings.canary if drawn and settings.canary else DEFAULT_MODEL
        if name not in self.models:
            raise Refusal("unknown_model", f"there is no model {name!r}; GET /v1/models lists them")
        return name, self.models[name]

    def check_room(self) -> None:
        """Refuse early what would be refused after its body has been read.

        Raises:
            Refusal: `overloaded`.
        """
        if self._num_in_flight >= self.settings.max_in_flight:
            raise Refusal("overloaded", f"{self._num_in_flight} photos are waiting; try again")

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        self.check_room()
        self._num_in_flight += 1
        self.instruments.in_flight.set(self._num_in_flight)
        try:
            yield
        finally:
            self._num_in_flight -= 1
            self.instruments.in_flight.set(self._num_in_flight)

    @asynccontextmanager
    async def deadline(self, asked_s: float | None) -> AsyncIterator[None]:
        """Cancel what takes longer than the server, or the client, allows.

        Raises:
            Refusal: `deadline_exceeded`.
        """
        limit_s = min(asked_s or self.settings.request_timeout_s, self.settings.request_timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError:
            raise Refusal("deadline_exceeded", f"there was no count within {limit_s:g} s") from None

    async def count(self, data: bytes, model: str | None, request_id: str) -> Answer:
        """Count one photo.

        Raises:
            Refusal: the model is unknown, or the server is full.
            ImageError: the bytes are no usable photo.
            CheckpointError: the model answered NaN.
        """
        name, predictor = self.choose(model, request_id)
        return await self._count_admitted(data, name, predictor)

    async def count_when_quiet(self, data: bytes, name: str, predictor: Predictor) -> Answer:
        """Count a photo of an audit: it waits while half of the room is taken, so that the rest is left for requests.

        Raises:
            ImageError: the bytes are no usable photo.
            CheckpointError: the model answered NaN.
        """
        while self._num_in_flight >= self.settings.max_in_flight / 2:  # noqa: ASYNC110  # requests need not tell audits
            await asyncio.sleep(LOOK_AGAIN_S)
        return await self._count_admitted(data, name, predictor)

    async def _count_admitted(self, data: bytes, name: str, predictor: Predictor) -> Answer:
        with self._admitted():
            answer = await self._count(data, name, predictor)
        self.instruments.counted.labels(name, answer.counted.count).inc()
        for flag in answer.quality.flags:
            self.instruments.flags.labels(flag).inc()
        if self.settings.shadow not in (None, name):
            self._shadow(data, answer.counted)
        return answer

    def verify(self, answer: Answer, expected_quantity: int) -> Verdict:
        """Whether a counted photo agrees with its record."""
        verdict = answer.predictor.verify(answer.counted, expected_quantity)
        self.instruments.verdicts.labels(answer.model, verdict.decision).inc()
        return verdict

    async def _count(self, data: bytes, name: str, predictor: Predictor) -> Answer:
        assert self.engine is not None
        begun = time.perf_counter()
        photo, quality = await asyncio.get_running_loop().run_in_executor(self._decoders, predictor.decode, data)
        decoded = time.perf_counter()
        counted = await self.engine(Job(predictor, photo))
        ended = time.perf_counter()
        self.instruments.stage_seconds.labels("decode").observe(decoded - begun)
        self.instruments.stage_seconds.labels("count").observe(ended - decoded)
        return Answer(
            counted=counted,
            quality=quality,
            model=name,
            predictor=predictor,
            decode_s=decoded - begun,
            count_s=ended - decoded,
        )

    def _shadow(self, data: bytes, counted: Counted) -> None:
        """Let the shadow model count the photo, too, after the answer; dropped when the server is half full."""
        if self._num_in_flight > self.settings.max_in_flight / 2:
            return
        task = asyncio.get_running_loop().create_task(self._compare(data, counted.count))
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def _compare(self, data: bytes, count: int) -> None:
        assert self.engine is not None
        predictor = self.models.get(self.settings.shadow or "")
        if predictor is None:
            return
        try:
            photo, _ = await asyncio.get_running_loop().run_in_executor(self._decoders, predictor.decode, data)
            other = await self.engine(Job(predictor, photo))
        except BinTallyError as error:
            server_log.warning("the shadow model failed: %s", error)
            return
        self.instruments.shadowed.labels(str(other.count == count).lower()).inc()

    def count_batch(self, jobs: list[Job]) -> list[Counted | CheckpointError]:
        """`count_jobs` for an engine, in a thread, a batch at a time; notes whether the first model works."""
        first = [job.predictor is self.models[DEFAULT_MODEL] for job in jobs]
        is_well = False
        self._batch_began = time.monotonic()
        try:
            results = count_jobs(jobs, self.instruments)
            is_well = not any(
                isinstance(one, CheckpointError) for one, mine in zip(results, first, strict=True) if mine
            )
        finally:
            self._batch_began = None
            if any(first):
                self._is_well, self._ready_until = is_well, time.monotonic() + READY_FOR_S if is_well else 0.0
        return results

    async def check_ready(self) -> None:
        """Let the first model count a probe photo, the way of every other photo, unless it is seen to work.

        A probe waits for all photos before it, which with a slow model takes longer than orchestrators are patient.

        Raises:
            CheckpointError: it does not answer with probabilities.
        """
        now, began = time.monotonic(), self._batch_began
        is_at_work = began is not None and now < began + HANGS_S
        if now < self._ready_until or (self._is_well and is_at_work):
            return
        predictor = self.models[DEFAULT_MODEL]
        await self._count(probe_photo(), DEFAULT_MODEL, predictor)

    async def close(self) -> None:
        """End the threads."""
        for task in self.background:
            task.cancel()
        self._decoders.shutdown(wait=False, cancel_futures=True)
