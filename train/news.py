"""What runs anywhere in the cluster tells the driver while it happens: lines for the terminal, figures of epochs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any, Final, Protocol, runtime_checkable

from ray.util.queue import Queue

from data.session import beside_driver

_LAST_S: Final = 600.0  # for the last news; a tracker whose server is gone tries for minutes before it gives up
_STOPPED_S: Final = 5.0  # the same, when somebody wants an end


@runtime_checkable
class News(Protocol):
    """Takes news in any process that it is sent to."""

    def put(self, item: Any, /) -> None:  # noqa: ANN401  # whatever the one who hears it expects
        """Tell one thing."""


@contextmanager
def heard(hear: Callable[[Any], None]) -> Iterator[News]:
    """Call `hear` here, in a thread of its own, with all that is put, in order; the last of it before this ends.

    What `hear` raises is raised at the end, and keeps it from nothing that follows.
    """
    queue = Queue(actor_options=beside_driver())
    faults: list[Exception] = []

    def listen() -> None:
        while (news := queue.get()) is not None:
            try:
                hear(news)
            except Exception as error:  # noqa: BLE001  # raised below
                faults.append(error)

    thread = Thread(target=listen, daemon=True)
    thread.start()
    wait_s = _LAST_S
    try:
        yield queue
    except (KeyboardInterrupt, SystemExit):
        wait_s = _STOPPED_S
        raise
    finally:
        queue.put(None)
        thread.join(timeout=wait_s)
        queue.shutdown()
    if faults:
        raise faults[0]
