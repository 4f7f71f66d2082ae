"""A notice that a node goes is heard once, by all workers alike, between two steps or in the wait for a batch."""

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bintally.batch import BATCH_ROWS
from data.decode import Share
from data.feed import StreamFeed
from train.workers import Notice, Worker


class Train:
    """What Ray Train tells a worker."""

    def __init__(self) -> None:
        self.info: str | None = None

    @property
    def context(self) -> SimpleNamespace:
        return SimpleNamespace(preemption_context=SimpleNamespace(preemption_info=self.info))


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Train:
    told = Train()
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: told.info)
    monkeypatch.setattr("train.workers.get_train_context", lambda: told.context)
    monkeypatch.setattr("train.workers._ASK_S", 0.0)
    return told


def notice_of(news: "SimpleQueue[str]") -> Notice:
    return Notice(Worker(0, 1, torch.device("cpu")), news, "train")


def test_a_notice_between_two_steps_is_heard_once(train: Train) -> None:
    news: SimpleQueue[str] = SimpleQueue()
    notice = notice_of(news)
    assert not notice.came()
    train.info = "a node goes"
    assert [notice.came(), notice.came()] == [True, False]
    assert news.get_nowait().startswith("train: a node is taken away")
    assert news.empty()


def test_a_wait_is_used_for_a_checkpoint_once_it_is_long_and_a_node_goes(train: Train) -> None:
    notice, stored = notice_of(SimpleQueue()), []
    ask = notice.in_wait(lambda: stored.append("checkpoint"))
    ask(1000.0)
    assert not stored
    train.info = "a node goes"
    ask(1.0)
    assert not stored
    for waited_s in (60.0, 61.0):
        ask(waited_s)
    assert stored == ["checkpoint"]
    assert not notice.came()


class Shard:
    """A worker's part of a stream whose second batch waits until it is let go."""

    def __init__(self) -> None:
        self.go = Event()

    def iter_batches(self, **_: object) -> Iterator[dict[str, np.ndarray]]:
        yield {BATCH_ROWS: np.array([1])}
        assert self.go.wait(60)
        yield {BATCH_ROWS: np.array([2])}


def test_a_stream_tells_how_long_a_batch_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.feed._LOOK_S", 0.01)
    shard, waits = Shard(), []

    def on_wait(waited_s: float) -> None:
        waits.append(waited_s)
        if len(waits) == 3:
            shard.go.set()

    feed = StreamFeed(shard, Share(global_batch_size=2), 0, None)
    batches: list[Any] = list(feed.epoch(1, on_wait=on_wait))
    assert [batch[BATCH_ROWS][0] for batch in batches] == [1, 2]
    assert 0 < waits[0] < waits[1] < waits[2]
