"""What runs anywhere in the cluster tells the driver while it happens: lines for the terminal, figures of epochs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any, Protocol, runtime_checkable

from ray.util.queue import Queue


@runtime_checkable
class News(Protocol):
    """Takes news in any process that it is sent to."""

    def put(self, item: Any, /) -> None:  # noqa: ANN401  # whatever the one who hears it expects
        """Tell one thing."""


@contextmanager
def heard(hear: Callable[[Any], None]) -> Iterator[News]:
    """Call `hear` here, in a thread of its own, with all that is put, in order; the last of it before this ends."""
    queue = Queue(actor_options={"num_cpus": 0})

    def listen() -> None:
        while (news := queue.get()) is not None:
            hear(news)

    thread = Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        queue.put(None)
        thread.join(timeout=5)
        queue.shutdown()
