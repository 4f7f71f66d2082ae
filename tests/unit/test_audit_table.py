"""Record tables of audits: what is read, and which row is named when one is wrong."""

import csv
import io
import json
import re

import pytest

from serve.audit_table import CSV, MAX_RECORDS, AuditRecord, RecordTable, parse_table, table_body
from serve.bodies import JSON
from serve.problems import Refusal

OUTSIDE = (
    *("../secret.jpg", "/etc/passwd", "bin-images/../../secret.jpg", "..", ".", "a/./b.jpg", "a//b.jpg", "a/", "a/.."),
    *("http://169.254.169.254/x", "file:///etc/passwd", "s3://other/x.jpg", "a\nb.jpg", "a.jpg\n", "a\x00.jpg", ""),
)


def of_json(records: list[dict[str, object]], prefix: str | None = None, query: str | None = None) -> RecordTable:
    values = {"records": records} | ({"prefix": prefix} if prefix is not None else {})
    return parse_table(json.dumps(values).encode(), JSON, query)


def of_csv(text: str, prefix: str | None = None) -> RecordTable:
    return parse_table(text.encode(), CSV, prefix)


def test_a_bin_id_means_the_photo_that_abid_has_of_it() -> None:
    table = of_json([{"bin_id": "00007", "expected_quantity": 3}, {"key": "a b/ü#?%2e.png", "expected_quantity": 0}])
    assert table.records == (AuditRecord("bin-images/00007.jpg", "00007", 3), AuditRecord("a b/ü#?%2e.png", None, 0))
    assert table.folder is None


@pytest.mark.parametrize("prefix", ["aisle/7", "aisle/7/"])
def test_a_bin_id_lies_under_the_prefix(prefix: str) -> None:
    for table in (
        of_json([{"bin_id": "00007", "expected_quantity": 3}], prefix),
        of_json([{"bin_id": "00007", "expected_quantity": 3}], query=prefix),
        of_csv("bin_id,expected_quantity\n00007,3\n", prefix),
    ):
        assert table == RecordTable((AuditRecord("aisle/7/00007.jpg", "00007", 3),), "aisle/7/")


def test_a_csv_of_a_spreadsheet_is_read() -> None:
    text = '\ufeffASIN,Expected_Quantity , bin_id,key\r\nB01,3,00007,\r\n\r\n"B,02",00,"8 ","x/8.jpg"\r\n'
    assert of_csv(text).records == (
        AuditRecord("bin-images/00007.jpg", "00007", 3),
        AuditRecord("x/8.jpg", "8", 0),
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_table_is_read_as_excel_writes_it(delimiter: str, encoding: str, line_end: str) -> None:
    rows = [["Größe, in cm", "bin_id", "expected_quantity"], ["3,5; 4", "00007", "3"], ['"zwölf"', "00008", "0"]]
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator=line_end).writerows(rows)
    table = parse_table(file.getvalue().encode(encoding), CSV, None)
    assert [(one.bin_id, one.expected_quantity) for one in table.records] == [("00007", 3), ("00008", 0)]


@pytest.mark.parametrize("key", OUTSIDE)
def test_no_key_leads_out_of_the_bucket(key: str) -> None:
    with pytest.raises(Refusal, match=r"records\.1\.key: ") as refusal:
        of_json([{"bin_id": "1", "expected_quantity": 1}, {"key": key, "expected_quantity": 1}])
    assert refusal.value.status_code == 422


@pytest.mark.parametrize("prefix", [key for key in OUTSIDE if key != "a/"])
def test_no_prefix_leads_out_of_the_bucket(prefix: str) -> None:
    with pytest.raises(Refusal, match="prefix: "):
        of_json([{"bin_id": "1", "expected_quantity": 1}], prefix)


@pytest.mark.parametrize("bin_id", ["../1", "a/b", "", "1\n", "x" * 129])
def test_no_bin_id_leads_out_of_its_folder(bin_id: str) -> None:
    with pytest.raises(Refusal, match=r"records\.0\.bin_id: "):
        of_json([{"bin_id": bin_id, "expected_quantity": 1}])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("00002,-1", r"row 3: expected_quantity: a whole number in 0\.\.100000, not '-1'"),
        ("00002,three", "row 3: expected_quantity: .*'three'"),
        ("00002,1000000000", "row 3: expected_quantity"),
        ("00002,²", "row 3: expected_quantity"),
        ("00002,", "row 3: expected_quantity"),
        (",3", "row 3: .*a record needs a key or a bin_id"),
        ("a/b,3", "row 3: bin_id: .*a bin id without /"),
        ("00002", "row 3: 1 fields, where the header has 2"),
        ("00002,3,4", "row 3: 3 fields"),
        ("\n00001,3", r"row 4: bin-images/00001\.jpg stands in row 2, too"),
        ('"00002"x,3', "row 3: "),
        ("0" * 200_000 + ",3", "row 3: field larger than"),
    ],
)
def test_a_bad_row_of_a_csv_is_named(rows: str, message: str) -> None:
    with pytest.raises(Refusal, match=message) as refusal:
        of_csv(f"bin_id,expected_quantity\n00001,3\n{rows}\n")
    assert (refusal.value.status_code, refusal.value.code) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"bin_id": "2", "expected_quantity": -1}, r"records\.1\.expected_quantity: .*greater than or equal to 0"),
        ({"bin_id": "2", "expected_quantity": "3"}, r"records\.1\.expected_quantity: "),
        ({"bin_id": "2", "expected_quantity": 10**9}, r"records\.1\.expected_quantity: "),
        ({"bin_id": "2"}, r"records\.1\.expected_quantity: "),
        ({"key": None, "bin_id": "2", "expected_quantity": 3}, r"records\.1\.key: "),
        ({"expected_quantity": 3}, r"records\.1: .*a record needs a key or a bin_id"),
        ({"bin_id": "2", "expected_quantity": 3, "url": "http://x"}, r"records\.1\.url: "),
        ({"key": "bin-images/1.jpg", "expected_quantity": 3}, r"records\.1: .* stands in records\.0, too"),
    ],
)
def test_a_bad_record_of_json_is_named(record: dict[str, object], message: str) -> None:
    with pytest.raises(Refusal, match=message) as refusal:
        of_json([{"bin_id": "1", "expected_quantity": 3}, record])
    assert refusal.value.status_code == 422


@pytest.mark.parametrize(
    "text", ["", "00001,3\n", "bin_id\n00001\n", "expected_quantity\n3\n", "bin_id|expected_quantity\n00001|3\n"]
)
def test_a_csv_needs_a_header(text: str) -> None:
    with pytest.raises(Refusal, match=r"row 1: a header .* is needed, .*, semicolons or tabs"):
        of_csv(text)


def test_a_table_needs_a_record() -> None:
    with pytest.raises(Refusal, match="row 2: there is no record"):
        of_csv("bin_id,expected_quantity\n\n")
    with pytest.raises(Refusal, match="records: "):
        of_json([])


def test_a_csv_is_utf_8() -> None:
    with pytest.raises(Refusal, match="not UTF-8"):
        parse_table("bin_id,expected_quantity\nü,3\n".encode("latin-1"), CSV, None)


def test_json_that_is_none_is_told_from_a_wrong_one() -> None:
    with pytest.raises(Refusal) as refusal:
        parse_table(b'{"records": [', JSON, None)
    assert (refusal.value.status_code, refusal.value.code) == (400, "invalid_json")


def test_a_key_outside_the_prefix_is_refused() -> None:
    with pytest.raises(Refusal, match=r"row 2: aisle/70/1\.jpg does not lie under the prefix aisle/7/"):
        of_csv("key,expected_quantity\naisle/70/1.jpg,3\n", "aisle/7")


def test_the_number_of_records_is_bounded() -> None:
    rows = "".join(f"{number},1\n" for number in range(MAX_RECORDS))
    assert len(of_csv(f"bin_id,expected_quantity\n{rows}").records) == MAX_RECORDS
    with pytest.raises(Refusal, match=f"row {MAX_RECORDS + 2}: more than 100,000 records"):
        of_csv(f"bin_id,expected_quantity\n{rows}more,1\n")


def test_openapi_describes_the_keys_that_are_taken() -> None:
    schema = table_body()["requestBody"]["content"][JSON]["schema"]
    row = schema["properties"]["records"]["items"]
    pattern = re.compile(row["properties"]["key"]["pattern"])
    assert pattern.search("bin-images/00001.jpg")
    assert not any(pattern.search(key) for key in OUTSIDE if not key.endswith("\n"))  # $ of Python allows that one
    assert row["anyOf"] == [{"required": ["key"]}, {"required": ["bin_id"]}]
    assert "$ref" not in json.dumps(schema)  # OpenAPI would look for it elsewhere
