"""What is put anywhere in the cluster is heard by the driver, whatever happens there meanwhile."""

import time

import pytest

from train.news import heard

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def test_a_fault_of_the_listener_is_told_at_the_end_and_keeps_it_from_nothing() -> None:
    told: list[str] = []

    def hear(line: str) -> None:
        if line == "bad":
            raise RuntimeError("no such line")
        told.append(line)

    def put_all(*lines: str) -> None:
        with heard(hear) as news:
            for line in lines:
                news.put(line)

    with pytest.raises(RuntimeError, match="no such line"):
        put_all("bad", "epoch 1", "bad", "epoch 2")
    assert told == ["epoch 1", "epoch 2"]


def test_the_last_news_are_waited_for() -> None:
    told: list[int] = []

    def hear_slowly(number: int) -> None:
        time.sleep(0.7)
        told.append(number)

    with heard(hear_slowly) as news:
        for number in range(10):
            news.put(number)
    assert told == list(range(10))
