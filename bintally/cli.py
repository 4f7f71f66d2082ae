"""What every command line shares: errors as one line, exit codes, Ctrl-C.

Exit codes: 0 done, 1 a bug (with traceback), 2 bad input or a failed source, 130 interrupted, 143 terminated.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bintally.errors import BinTallyError


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print expected errors as one line on stderr and exit; let bugs pass with their traceback."""
    # By default a SIGTERM ends Python on the spot, without stopping the Ray that the command started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_exit_with("terminated", 143)))
    try:
        yield
    except BinTallyError as error:
        sys.exit(_exit_with(f"error: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_exit_with("interrupted", 130))


def _exit_with(message: str, code: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return code
