"""The micro-batcher: what waits is taken together, and nobody waits for who has gone."""

import asyncio

import pytest

from serve.batcher import MicroBatcher


class Worker:
    """Squares numbers when it is let; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.begun: asyncio.Queue[int] = asyncio.Queue()

    async def __call__(self, jobs: list[int]) -> list[int]:
        self.batches.append(jobs)
        self.begun.put_nowait(len(jobs))
        await self.gate.wait()
        if -1 in jobs:
            raise ValueError("-1 has spoiled this batch")
        return [job * job for job in jobs]


def test_what_comes_meanwhile_is_one_batch() -> None:
    async def story() -> None:
        worker = Worker()
        batcher = MicroBatcher(worker, max_size=4)
        first = asyncio.create_task(batcher(0))
        await worker.begun.get()
        others = [asyncio.create_task(batcher(number)) for number in range(1, 7)]
        await asyncio.sleep(0)
        worker.gate.set()
        assert await asyncio.gather(first, *others) == [0, 1, 4, 9, 16, 25, 36]
        assert worker.batches == [[0], [1, 2, 3, 4], [5, 6]]
        await batcher.close()

    asyncio.run(story())


def test_who_has_gone_is_not_worked_for() -> None:
    async def story() -> None:
        worker = Worker()
        batcher = MicroBatcher(worker, max_size=8)
        first = asyncio.create_task(batcher(0))
        await worker.begun.get()
        gone, alone = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
        await asyncio.sleep(0)
        gone.cancel()
        first.cancel()
        worker.gate.set()
        assert await alone == 4
        assert worker.batches == [[0], [2]]
        await batcher.close()

    asyncio.run(story())


def test_an_error_is_that_of_its_batch_alone() -> None:
    async def story() -> None:
        worker = Worker()
        worker.gate.set()
        batcher = MicroBatcher(worker, max_size=8)
        spoiled = await asyncio.gather(batcher(-1), batcher(3), return_exceptions=True)
        assert [type(one) for one in spoiled] == [ValueError, ValueError]
        assert await batcher(5) == 25
        await batcher.close()

    asyncio.run(story())


def test_one_job_can_fail_alone() -> None:
    async def story() -> None:
        async def halve(jobs: list[int]) -> list[int | Exception]:
            return [ValueError("odd") if job % 2 else job // 2 for job in jobs]

        batcher = MicroBatcher(halve, max_size=8)
        answers = await asyncio.gather(batcher(4), batcher(3), batcher(6), return_exceptions=True)
        assert [answers[0], type(answers[1]), answers[2]] == [2, ValueError, 3]
        await batcher.close()

    asyncio.run(story())


def test_the_first_waits_for_others_if_told_so() -> None:
    async def story() -> None:
        worker = Worker()
        worker.gate.set()
        batcher = MicroBatcher(worker, max_size=2, max_wait_s=5.0)
        first = asyncio.create_task(batcher(1))
        await asyncio.sleep(0.05)
        assert not worker.batches
        assert await asyncio.wait_for(asyncio.gather(first, batcher(2)), 2) == [1, 4]
        assert worker.batches == [[1, 2]]
        await batcher.close()

    asyncio.run(story())


def test_closing_ends_whoever_waits() -> None:
    async def story() -> None:
        worker = Worker()
        batcher = MicroBatcher(worker, max_size=1)
        waiting = [asyncio.create_task(batcher(number)) for number in range(2)]
        await worker.begun.get()
        await batcher.close()
        for one in waiting:
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(one, 2)

    asyncio.run(story())
