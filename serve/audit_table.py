"""The record table of an audit: JSON or CSV to records, each with the key of its photo."""

import csv
import io
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, LiteralString, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from serve.bodies import JSON, MAX_EXPECTED, ExpectedQuantity, parse_json
from serve.problems import Refusal

CSV: Final = "text/csv"
MAX_RECORDS: Final = 100_000
MAX_TABLE_BYTES: Final = 16_000_000
IMAGE_FOLDER: Final = "bin-images"
"""Where ABID keeps the photos, `<bin id>.jpg`."""

# No segment is empty, . or .., so that no key leads out of the bucket, and none has a control character.
_SEGMENT: Final = r"(?!\.{1,2}(/|$))[^/\x00-\x1f\x7f]+"
_KEY: Final = rf"^{_SEGMENT}(/{_SEGMENT})*$"
_FOLDER: Final = rf"^{_SEGMENT}(/{_SEGMENT})*/?$"
_BIN: Final = r"^[^/\x00-\x1f\x7f]+$"


def _matching(pattern: str, what: LiteralString) -> AfterValidator:
    compiled = re.compile(pattern.removesuffix("$") + r"\Z")  # $ alone would let a newline pass

    def check(text: str) -> str:
        if not compiled.match(text):
            raise PydanticCustomError("pattern", what)
        return text

    return AfterValidator(check)


Key = Annotated[
    str,
    Field(min_length=1, max_length=1024, json_schema_extra={"pattern": _KEY}),
    _matching(_KEY, "a key in the bucket of the server, as bin-images/00001.jpg: no URL, no leading / and no .."),
]
Folder = Annotated[
    str,
    Field(min_length=1, max_length=1024, json_schema_extra={"pattern": _FOLDER}),
    _matching(_FOLDER, "a folder in the bucket of the server, as bin-images/: no URL, no leading / and no .."),
]
BinName = Annotated[
    str,
    Field(min_length=1, max_length=128, json_schema_extra={"pattern": _BIN}),
    _matching(_BIN, "a bin id without /"),
]

ABSENT: Final = Field(default_factory=str)  # "", which OpenAPI need not know


class RecordRow(BaseModel):
    """What the record says of one bin, and where its photo lies: `key`, or else where ABID has that of `bin_id`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"anyOf": [{"required": [f]} for f in ("key", "bin_id")]}
    )

    key: Annotated[Key, ABSENT]
    bin_id: Annotated[BinName, ABSENT]
    expected_quantity: ExpectedQuantity

    @model_validator(mode="after")
    def _has_a_photo(self) -> Self:
        if not self.key and not self.bin_id:
            raise PydanticCustomError("no_photo", "a record needs a key or a bin_id")
        return self


class TableJson(BaseModel):
    """A record table as JSON."""

    model_config = ConfigDict(extra="forbid")

    records: Annotated[list[RecordRow], Field(min_length=1, max_length=MAX_RECORDS)]
    prefix: Annotated[Folder, ABSENT]
    """A folder whose photos are held against the records, both ways."""


class AuditRecord(NamedTuple):
    """What the record says of the bin in a photo."""

    key: str
    bin_id: str | None
    expected_quantity: int


@dataclass(frozen=True, slots=True)
class RecordTable:
    """The records of an audit, each of another photo."""

    records: tuple[AuditRecord, ...]
    folder: str | None
    """Ends with /. Its photos are held against the records, both ways."""


def table_body() -> dict[str, Any]:
    """OpenAPI of a body that holds a record table."""
    table, row = TableJson.model_json_schema(), RecordRow.model_json_schema()
    del table["$defs"]
    table["properties"]["records"]["items"] = row
    text = (
        f"Up to {MAX_RECORDS:,} records in {MAX_TABLE_BYTES // 10**6} MB. A CSV (commas, semicolons or tabs) has a"
        " header with expected_quantity and key or bin_id; other columns are ignored."
    )
    content = {JSON: {"schema": table}, CSV: {"schema": {"type": "string", "minLength": 1}}}
    return {"requestBody": {"required": True, "description": text, "content": content}}


def parse_table(body: bytes, kind: str, prefix: str | None) -> RecordTable:
    """The records of a body.

    Args:
        body: JSON, or CSV in UTF-8 or UTF-16.
        kind: its media type.
        prefix: of the query; one in the JSON goes before it.

    Raises:
        Refusal: it cannot be read, or a row is wrong; the message names the row, `records.0` the first of JSON, `row 2`
            the first below the header of a CSV.
    """
    if kind == JSON:
        table = parse_json(TableJson, body)
        rows = ((f"records.{place}", row) for place, row in enumerate(table.records))
        return _make_table(rows, table.prefix or prefix)
    return _make_table(_rows_of_csv(body), prefix)


def _make_table(rows: Iterable[tuple[str, RecordRow]], prefix: str | None) -> RecordTable:
    folder = f"{prefix.rstrip('/')}/" if prefix else None
    records: list[AuditRecord] = []
    first: dict[str, str] = {}
    for where, row in rows:
        key = row.key or f"{folder or IMAGE_FOLDER + '/'}{row.bin_id}.jpg"
        if folder and not key.startswith(folder):
            raise Refusal("invalid_request", f"{where}: {key} does not lie under the prefix {folder}")
        if key in first:
            raise Refusal("invalid_request", f"{where}: {key} stands in {first[key]}, too; a bin has one record")
        first[key] = where
        records.append(AuditRecord(key, row.bin_id or None, row.expected_quantity))
    return RecordTable(tuple(records), folder)


def _rows_of_csv(body: bytes) -> Iterator[tuple[str, RecordRow]]:
    try:
        # Excel writes tabs in UTF-16, as "Unicode text".
        text = body.decode("utf-16" if body.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
        # Of the three that spreadsheets write, the one that the header has most of.
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip().lower() for name in next(lines, [])]
        if "expected_quantity" not in header or not {"key", "bin_id"} & {*header}:
            raise Refusal(
                "invalid_request",
                "row 1: a header with expected_quantity and key or bin_id is needed, with commas, semicolons or tabs",
            )
        num_rows = 0
        for fields in lines:
            if not fields:
                continue  # an empty line
            num_rows += 1
            if num_rows > MAX_RECORDS:
                raise Refusal("invalid_request", f"row {lines.line_num}: more than {MAX_RECORDS:,} records")
            where = f"row {lines.line_num}"
            yield where, _row_of_csv(where, header, fields)
    except UnicodeDecodeError:
        raise Refusal("invalid_request", "the CSV is not UTF-8; save it as CSV UTF-8") from None
    except csv.Error as error:
        raise Refusal("invalid_request", f"row {lines.line_num}: {error}") from None
    if not num_rows:
        raise Refusal("invalid_request", "row 2: there is no record")


def _row_of_csv(where: str, header: list[str], fields: list[str]) -> RecordRow:
    if len(fields) != len(header):
        raise Refusal("invalid_request", f"{where}: {len(fields)} fields, where the header has {len(header)}")
    values = dict(zip(header, (field.strip() for field in fields), strict=True))
    quantity = values["expected_quantity"]
    if not re.fullmatch(r"[0-9]{1,9}", quantity) or int(quantity) > MAX_EXPECTED:
        raise Refusal(
            "invalid_request", f"{where}: expected_quantity: a whole number in 0..{MAX_EXPECTED}, not {quantity!r:.20}"
        )
    known = {name: values[name] for name in ("key", "bin_id") if values.get(name)}
    try:
        return RecordRow(**known, expected_quantity=int(quantity))
    except ValueError as error:  # pydantic's ValidationError is one
        raise Refusal("invalid_request", f"{where}: {_first_of(error)}") from None


def _first_of(error: ValueError) -> str:
    first = error.errors(include_url=False)[0]  # type: ignore[attr-defined]
    return ": ".join([*map(str, first["loc"]), first["msg"]])
