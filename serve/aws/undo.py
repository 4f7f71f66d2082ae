"""What a deployment made is taken back when it fails or is stopped."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bintally.errors import AwsError, AwsNotFoundError
from serve.aws.calls import Aws

Undo = list[tuple[str, Callable[[], object]]]
"""What is made, and what takes it back. It is noted before the call: one whose answer is lost may have made it."""


@contextmanager
def undone_on_failure(aws: Aws, name: str) -> Iterator[Undo]:
    """Take back, last first, what was made before a failure or a signal; a second signal leaves the rest."""
    undo: Undo = []
    try:
        yield undo
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        is_failure = isinstance(error, Exception)
        aws.say(f"failed, and is undone: {error}" if is_failure else "stopped, and is undone; Ctrl-C leaves the rest")
        try:
            # What could not be taken back needs what was made before it.
            while undo and _taken_back(aws, *undo[-1]):
                undo.pop()
        except (KeyboardInterrupt, SystemExit):
            _tell_left(undo, name)
            raise
        if undo and isinstance(error, AwsError):
            raise AwsError(f"{error}; could not be undone: {_named(undo)}", error.code) from None
        if undo:
            _tell_left(undo, name)
        raise


def _named(undo: Undo) -> str:
    return ", ".join(what for what, _ in reversed(undo))


def _tell_left(undo: Undo, name: str) -> None:
    print(
        f"left as it is: {_named(undo)}. The same command goes on from there, `python serve/export.py delete"
        f" --name {name}` deletes the endpoint and what belongs to it. An endpoint costs money until then.",
        file=sys.stderr,
    )


def _taken_back(aws: Aws, what: str, take_back: Callable[[], object]) -> bool:
    """Whether it is gone."""
    try:
        take_back()
    except AwsNotFoundError:
        return True
    except AwsError as error:
        aws.say(f"{what} could not be undone: {error}")
        return False
    aws.say(f"undone: {what}")
    return True
