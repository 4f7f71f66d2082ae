"""Ask a BinTally server from Python, or from a terminal.

    python serve/client.py count photo.jpg other.jpg
    python serve/client.py verify photo.jpg --expected-quantity 3
    python serve/client.py audit records.csv --out queue.csv

    with Client("http://127.0.0.1:8000") as client:
        print(client.count(Path("photo.jpg")).count)

BINTALLY_URL and BINTALLY_TOKEN say where the server is and what opens it.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from bintally.errors import ConfigError, ServerError
from serve.audit_schema import AuditBin, AuditError, AuditLine, AuditProgress, AuditSummary
from serve.schema import BatchAnswer, CountAnswer, ModelAnswer, Problem, Ready, VerifyAnswer

Photo = bytes | Path
Record = Mapping[str, str | int]

TRY_AGAIN: Final = (429, 503)
FIRST_WAIT_S: Final = 0.25  # doubles with each try, where the server names no time
MAX_WAIT_S: Final = 30.0

_Answer = TypeVar("_Answer", bound=BaseModel)
_Parsed = TypeVar("_Parsed")
_LINE: Final = TypeAdapter[AuditLine](AuditLine)


class ServerRefusal(ServerError):  # noqa: N818  # no fault: the server says what is wrong with the request
    """The server answered with a problem.

    Attributes:
        problem: what it said; `problem.code` is for programs.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.code}: {problem.detail} (request {problem.request_id})")
        self.problem = problem


class ServerUnreachableError(ServerError):
    """There is no server, or its answer broke off."""


class Client:
    """A BinTally server. Threads may share one."""

    def __init__(self, url: str, token: str | None = None, *, timeout_s: float = 30.0, max_tries: int = 5) -> None:
        """Connect with the first call.

        Args:
            url: of the server, as http://127.0.0.1:8000.
            token: a bearer token, if the server asks for one.
            timeout_s: silence after which a request has failed.
            max_tries: of one call, as long as the server is full or cannot be reached.

        Raises:
            ConfigError: the URL is none of a server, or the token cannot be sent.
        """
        try:
            is_url = httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
        except httpx.InvalidURL:
            is_url = False
        if not is_url:
            raise ConfigError(f"url must be http(s)://host[:port], not {url!r}")
        if token and not (token.isascii() and token.isprintable()):
            raise ConfigError("the token must be one line of ASCII")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        self._max_tries = max_tries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def count(self, photo: Photo, *, model: str | None = None) -> CountAnswer:
        """Count the items in a photo.

        Raises:
            ServerRefusal: the photo, or the request, is wrong.
            ServerUnreachableError: there was no answer.
        """
        return self._post_photo(CountAnswer, "/v1/count", photo, model=model)

    def verify(
        self, photo: Photo, expected_quantity: int, *, bin_id: str | None = None, model: str | None = None
    ) -> VerifyAnswer:
        """Tell whether a photo agrees with its record.

        Raises:
            ServerRefusal: the photo, or the request, is wrong.
            ServerUnreachableError: there was no answer.
        """
        record = {"expected_quantity": expected_quantity, "bin_id": bin_id}
        return self._post_photo(VerifyAnswer, "/v1/verify", photo, model=model, **record)

    def count_batch(self, photos: Iterable[Photo], *, model: str | None = None) -> BatchAnswer:
        """Count up to 64 photos in one request; one that cannot be counted has a problem of its own.

        Raises:
            ServerRefusal: the request is wrong.
            ServerUnreachableError: there was no answer.
        """
        files = [("photo", (photo.name if isinstance(photo, Path) else "photo", _read(photo))) for photo in photos]
        return self._ask(BatchAnswer, "POST", "/v1/count:batch", files=files, params=_known(model=model))

    def audit(
        self, records: Iterable[Record] | bytes, *, prefix: str | None = None, model: str | None = None
    ) -> Iterator[AuditProgress | AuditBin | AuditSummary]:
        """Audit records against the photos in the server's bucket: progress, then the recount queue, then a summary.

        Args:
            records: each with `expected_quantity` and `key` or `bin_id`; or a CSV with these columns.
            prefix: a folder of the bucket whose photos are held against the records, both ways.
            model: name of another model than the first.

        Raises:
            ServerRefusal: the request is wrong, or the audit failed on the way.
            ServerUnreachableError: there was no answer, or it broke off.
        """
        params = _known(prefix=prefix, model=model)
        body: dict[str, Any]
        if isinstance(records, bytes):
            body = {"content": records, "headers": {"content-type": "text/csv"}}
        else:
            body = {"json": {"records": [dict(record) for record in records]}}
        response = self._send("POST", "/v1/audit", params=params, stream=True, **body)
        try:
            with _transport_errors(self._http.base_url):
                for text in _lines_of(response):
                    line = _parse(_LINE, text)
                    if isinstance(line, AuditError):
                        raise ServerRefusal(line.problem)
                    yield line
                    if isinstance(line, AuditSummary):
                        return
            raise ServerUnreachableError("the audit broke off before its end")
        finally:
            response.close()

    def model(self, name: str | None = None) -> ModelAnswer:
        """The card of a model.

        Raises:
            ServerRefusal: there is no such model.
            ServerUnreachableError: there was no answer.
        """
        return self._ask(ModelAnswer, "GET", "/v1/model", params=_known(model=name))

    def ready(self) -> Ready:
        """Whether the server counts.

        Raises:
            ServerRefusal: it runs, but does not.
            ServerUnreachableError: there was no answer.
        """
        return self._ask(Ready, "GET", "/readyz")

    def _post_photo(self, kind: type[_Answer], path: str, photo: Photo, **params: Any) -> _Answer:  # noqa: ANN401
        headers = {"content-type": "application/octet-stream"}
        return self._ask(kind, "POST", path, content=_read(photo), headers=headers, params=_known(**params))

    def _ask(self, kind: type[_Answer], method: str, path: str, **request: Any) -> _Answer:  # noqa: ANN401
        return _parse(TypeAdapter(kind), self._send(method, path, stream=False, **request).content)

    def _send(self, method: str, path: str, *, stream: bool, **request: Any) -> httpx.Response:  # noqa: ANN401
        """The answer to a request, which is sent again while the server is full or cannot be reached.

        Nothing that is asked of a server changes it, so a request may always be sent twice.
        """
        for number in itertools.count(1):
            wait_s = FIRST_WAIT_S * 2 ** (number - 1)
            try:
                with _transport_errors(self._http.base_url):
                    response = self._http.send(self._http.build_request(method, path, **request), stream=stream)
                    if response.is_success:
                        break
                    response.read()
            except ServerUnreachableError:
                if number >= self._max_tries:
                    raise
            else:
                if number >= self._max_tries or not _is_for_now(response):
                    raise ServerRefusal(_problem_of(response))
                wait_s = _retry_after_s(response) or wait_s
            time.sleep(min(wait_s, MAX_WAIT_S))
        return response


@contextmanager
def _transport_errors(url: httpx.URL) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise ServerUnreachableError(f"{url}: {str(error) or type(error).__name__}") from None


def _problem_of(response: httpx.Response) -> Problem:
    """What the server said, or else what something between here and there did."""
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return Problem(
            type="about:blank",
            title=response.reason_phrase,
            status=response.status_code,
            detail=f"{response.url} answered {response.status_code}, not as a BinTally server does",
            code="foreign_answer",
            request_id=response.headers.get("x-request-id", ""),
        )


def _is_for_now(response: httpx.Response) -> bool:
    """Whether the same request may well succeed later; a 502 of a lost replica says so, one of a bucket does not."""
    return response.status_code in TRY_AGAIN or "retry-after" in response.headers


def _retry_after_s(response: httpx.Response) -> float | None:
    after = response.headers.get("retry-after", "")
    return float(after) if after.isascii() and after.isdigit() else None


def _parse(kind: TypeAdapter[_Parsed], text: str | bytes) -> _Parsed:
    try:
        return kind.validate_json(text)
    except ValidationError:
        raise ServerUnreachableError("the answer is not that of a BinTally server of this version") from None


def _lines_of(response: httpx.Response) -> Iterator[bytes]:
    """Lines as the server ends them; httpx's own end at U+2028 and its like, too, which a bin id may hold."""
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _known(**values: str | int | None) -> dict[str, str | int]:
    return {name: value for name, value in values.items() if value is not None}


def _read(photo: Photo) -> bytes:
    if isinstance(photo, bytes):
        return photo
    try:
        return photo.read_bytes()
    except OSError as error:
        raise ConfigError(f"{photo} cannot be read: {error.strerror}") from None


if __name__ == "__main__":
    from serve.client_command import main

    main()
