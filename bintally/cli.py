"""What every command line shares: errors as one line, exit codes, Ctrl-C.

Exit codes: 0 done, 1 a bug (with traceback), 2 bad input or a failed source, 130 interrupted, 143 terminated.
"""

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Final

from bintally.errors import BinTallyError

# What the user mends, by making room or choosing another folder.
CANNOT_WRITE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print expected errors as one line on stderr and exit; let bugs pass with their traceback."""
    terminated = Event()

    def on_sigterm(*_: object) -> None:
        terminated.set()  # waiting for Ray turns any exit into one with code 1
        sys.exit()

    # By default a SIGTERM ends Python on the spot, without stopping the Ray that the command started.
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    except BinTallyError as error:
        sys.exit(_exit_with(f"error: {error}", 2))
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        sys.exit(_exit_with(f"error: {error.filename or 'a file'} cannot be written: {error.strerror}", 2))
    except (KeyboardInterrupt, SystemExit) as stop:
        if terminated.is_set():
            sys.exit(_exit_with("terminated", 143))
        if isinstance(stop, SystemExit):
            raise
        sys.exit(_exit_with("interrupted", 130))


def _exit_with(message: str, code: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return code
