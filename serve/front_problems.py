"""What the front answers by itself; needs nothing, since the document of the API tells of it, too."""

from typing import Final

MAX_HEADER_BYTES: Final = 16_384

PROBLEMS: Final = {
    400: ("bad_request", "this is no HTTP request that a server can read"),
    404: ("not_found", "Not Found"),
    408: ("body_timeout", "the request did not arrive in time"),
    413: ("body_too_large", "the body is too large"),
    429: ("too_many_requests", "this client sends too many requests; wait a second"),
    431: ("request_header_fields_too_large", f"the headers may hold {MAX_HEADER_BYTES} bytes at most"),
    500: ("internal_error", "the front failed; its log tells more by the request id"),
    502: ("replica_lost", "the replica that worked on this request has ended; send it again"),
    503: ("overloaded", "no replica has room; try again"),
    504: ("deadline_exceeded", "the replica did not answer in time"),
}
"""Code and detail of what the front answers by itself, by status; the codes agree with serve/problems.py.

Only to bytes that are no HTTP (400), and to headers that do not end (408), HAProxy answers with a line of HTML: its
parser comes before all that can be configured.
"""

RETRIED: Final = (429, 502, 503)
"""Statuses with Retry-After, since the same request may well succeed later."""
