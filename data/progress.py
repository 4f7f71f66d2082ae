"""One way to tell the user what is going on: plain lines with the time since the command started."""

import time
from typing import Final

_START: Final = time.monotonic()


def say(message: str) -> None:
    """Print one line of progress, stamped with minutes and seconds since the start."""
    minutes, seconds = divmod(int(time.monotonic() - _START), 60)
    print(f"[{minutes:02d}:{seconds:02d}] {message}", flush=True)
