"""What every command line shares: errors as one line, exit codes, Ctrl-C.

Exit codes: 0 done, 1 a bug (with traceback), 2 bad input or a failed source, 130 interrupted, 141 nobody reads what is
printed (`| head`), 143 terminated.
"""

import errno
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Final

from bintally.errors import BinTallyError

# What the user mends, by making room or choosing another folder.
CANNOT_WRITE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_WRONG_PATH: Final = (errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)

_STDOUT: Final = 1


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
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        sys.exit(141)
    except OSError as error:
        told = _what_to_mend(error)
        if told is None:
            raise
        sys.exit(_exit_with(f"error: {told}", 2))
    except (KeyboardInterrupt, SystemExit) as stop:
        if terminated.is_set():
            sys.exit(_exit_with("terminated", 143))
        if isinstance(stop, SystemExit):
            raise
        sys.exit(_exit_with("interrupted", 130))


def _what_to_mend(error: OSError) -> str | None:
    """What a user can do something about; None for a bug."""
    if error.errno in CANNOT_WRITE:
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}"
    return f"{error.filename}: {error.strerror}" if error.errno in _WRONG_PATH and error.filename else None


def _nobody_reads() -> bool:
    """Whether it was stdout that broke, and not another connection; if so, Python's last flush goes nowhere."""
    watch = select.poll()
    watch.register(_STDOUT, 0)
    broken = any(event & select.POLLERR for _, event in watch.poll(0))
    if broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    return broken


def _exit_with(message: str, code: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return code
