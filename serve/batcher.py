"""Photos that arrive one by one, counted together: the micro-batcher of both engines."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Waiting(Generic[Job, Result]):
    job: Job
    answer: "asyncio.Future[Result]"


class MicroBatcher(Generic[Job, Result]):
    """Hands jobs on in batches: what has come while the batch before was computed, up to a size.

    A caller that is cancelled while it waits leaves the queue, so nothing is computed for it.
    """

    def __init__(
        self,
        run: Callable[[list[Job]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_size: int,
        max_wait_s: float = 0.0,
    ) -> None:
        """Batch for a function.

        Args:
            run: gives a result for each job of a batch, in order; an exception among them is raised for that job.
            max_size: jobs in a batch.
            max_wait_s: how long the first job of a batch waits for others.
        """
        self._run = run
        self.max_size = max_size
        self.max_wait_s = max_wait_s
        self._queue: asyncio.Queue[_Waiting[Job, Result]] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, job: Job) -> Result:
        """The result of one job; what its batch raises, it raises."""
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        waiting: _Waiting[Job, Result] = _Waiting(job, loop.create_future())
        self._queue.put_nowait(waiting)
        return await waiting.answer

    async def close(self) -> None:
        """Stop; whoever still waits is cancelled."""
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        while not self._queue.empty():
            self._queue.get_nowait().answer.cancel()

    async def _work(self) -> None:
        while True:
            batch = await self._gather()
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: list[_Waiting[Job, Result]]) -> None:
        try:
            results = await self._run([one.job for one in batch])
        except asyncio.CancelledError:
            for one in batch:
                one.answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the callers' answer
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        for one, result in zip(batch, results, strict=True):
            if one.answer.done():
                continue
            if isinstance(result, Exception):
                one.answer.set_exception(result)
            else:
                one.answer.set_result(result)

    async def _gather(self) -> list[_Waiting[Job, Result]]:
        """The next batch, without callers that have gone."""
        batch = [await self._queue.get()]
        if self.max_wait_s and self._queue.qsize() + 1 < self.max_size:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.max_wait_s):
                    while len(batch) < self.max_size:
                        batch.append(await self._queue.get())
        while len(batch) < self.max_size and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return [one for one in batch if not one.answer.done()]
