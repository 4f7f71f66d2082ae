"""When to ask a bucket again, beyond what its client does by itself.

obstore retries 5xx, timeouts and resets, and resumes a body that ended early. Three things are left: an answer that it
cannot make sense of (a listing cut off in mid-body, a range that does not fit), which it raises at once; a body cut off
more often than it resumes; and a body under a Content-Length that is too small, half of which it delivers as the whole.
"""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from obstore.exceptions import GenericError

MAX_ATTEMPTS: Final = 5
FIRST_WAIT_S: Final = 0.05  # doubles with each attempt: 0.75 s in all
GIVE_UP_S: Final = 120.0

# What obstore has retried already, and what will not change: any 4xx but 416, which answers a resumed range.
_FINAL: Final = re.compile(r"after \d+ retries(?!.*status code: 416)|status code: (?!416)4\d\d\b", re.DOTALL)
_MD5: Final = re.compile(r'"([0-9a-f]{32})"')
_ENDS: Final = (b"\xff\xd9", b"IEND\xaeB`\x82")  # of every whole JPEG and PNG

_Answer = TypeVar("_Answer")


class BrokenBodyError(OSError):
    """A body is not the whole object; `Bucket` turns it into a SourceUnreachableError as it does any OSError."""


async def insist(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """The answer to a question that is asked again, a few times, when its answer is broken."""
    give_up_at_s = time.monotonic() + GIVE_UP_S
    for attempt in range(1, MAX_ATTEMPTS):
        try:
            return await ask()
        except (GenericError, BrokenBodyError) as error:
            if _FINAL.search(str(error)) or time.monotonic() > give_up_at_s:
                raise
        await asyncio.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
    return await ask()


def check_whole(body: bytes, etag: str | None) -> bytes:
    """The body itself, if nothing says that it is only a part of the object.

    The MD5 of a photo would cost 6 % of the CPU time of the whole pipeline, so it is taken only of a body that does
    not end as a photo does. It decides nothing on its own either: the ETag of an object under SSE-KMS looks like an
    MD5 and is none.

    Raises:
        BrokenBodyError: it ends like no photo, is no JSON, and its MD5 is not the ETag of an upload in one part.
    """
    digest = _MD5.fullmatch(etag or "")
    if digest is None or body.endswith(_ENDS):
        return body
    if hashlib.md5(body, usedforsecurity=False).hexdigest() == digest[1] or _is_json(body):
        return body
    raise BrokenBodyError(f"{len(body):,} bytes came, which are not the object with ETag {etag}")


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True
