"""Several photos on the page: the recount queue, its CSV, a full server, a token."""

import csv
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FilePayload, expect

Core = Any  # of conftest.py
Page = Any  # of conftest.py
OpenPage = Callable[..., Page]
Serve = Callable[..., AbstractContextManager[str]]


def test_drop_and_paste(open_page: OpenPage, photos: list[FilePayload]) -> None:
    page = open_page()
    script = """([kind, bytes]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], `${kind}.jpg`, {type: "image/jpeg"}));
        const event = kind === "drop" ? new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true})
            : new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true});
        document.querySelector("main").dispatchEvent(event);
    }"""
    page.evaluate(script, ["drop", list(photos[0]["buffer"])])
    expect(page.locator("#name")).to_have_text("drop.jpg")
    expect(page.locator("#count")).not_to_be_empty()
    page.evaluate(script, ["paste", list(photos[1]["buffer"])])
    page.wait_until_counted(2)
    assert sorted(name for name, _ in page.rows()) == ["drop.jpg", "paste.jpg"]


def test_the_recount_queue(
    open_page: OpenPage,
    core: Core,
    photos: list[FilePayload],
    no_photo: FilePayload,
    records: dict[str, int],
    percentage: Callable[[str], float],
) -> None:
    page = open_page()
    lines = "".join(f"{name},{quantity}\n" for name, quantity in records.items())
    text = f"File,Quantity\n{lines}00001.jpg,3\nelse.jpg,three\n"
    page.choose(*photos, no_photo, {"name": "records.csv", "mimeType": "text/csv", "buffer": text.encode()})
    page.wait_until_counted(7)
    p_match = {photo["name"]: core.count(photo).probabilities[records[photo["name"]]] for photo in photos}
    rows = page.rows()
    assert [name for name, _ in rows] == [*sorted(p_match, key=p_match.__getitem__), "broken.jpg"]
    for name, told in rows[:-1]:
        assert percentage(told) == pytest.approx(100 * p_match[name], abs=0.1)
    expect(page.locator("#tally")).to_have_text("✓ Match: 2✕ Mismatch: 2? Review: 2! Failed: 1")
    expect(page.locator("#rows tbody tr").last).to_contain_text("The bytes are neither JPEG nor PNG.")
    expect(page.locator("#table-note")).to_contain_text("6 records, 6 of them with a photo here")
    expect(page.locator("#table-note")).to_contain_text("Row 8 names 00001.jpg a second time.")
    expect(page.locator("#table-note")).to_contain_text("Row 9, else.jpg: “three” is no whole number")


def exported(page: Page) -> tuple[str, list[dict[str, str]]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.suggested_filename == "recount-queue.csv"
    text = download.value.path().read_text("utf-8-sig")
    return text, list(csv.DictReader(io.StringIO(text)))


def test_the_queue_as_csv_says_what_the_table_says_and_can_come_back(
    open_page: OpenPage, core: Core, photos: list[FilePayload], no_photo: FilePayload, records: dict[str, int]
) -> None:
    page = open_page()
    evil: FilePayload = {**photos[0], "name": '=HYPERLINK("x"),1.jpg'}
    page.choose(*photos, no_photo, evil)
    page.wait_until_counted(8)
    for name, quantity in records.items():
        page.get_by_label(f"Expected quantity of {name}").fill(str(quantity))
    page.get_by_role("button", name="Save as CSV").focus()
    expect(page.locator("#tally")).to_have_text("✓ Match: 2✕ Mismatch: 2? Review: 2Counted, no record: 1! Failed: 1")
    text, rows = exported(page)
    assert [row["file"] for row in rows[:6]] == [name for name, _ in page.rows()][:6]
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 9)]
    for row in rows[:6]:
        of = core.count(next(one for one in photos if one["name"] == row["file"]))
        verdict = core.predictor.verify(of, records[row["file"]])
        assert (row["verdict"], row["count"], row["explanation"]) == (
            verdict.decision,
            str(of.count),
            verdict.sentence,
        )
        assert float(row["p_match"]) == pytest.approx(verdict.p_match, abs=1e-4)
    assert rows[6]["file"] == "'" + evil["name"]  # no formula in a spreadsheet
    assert rows[7]["error"] == "The bytes are neither JPEG nor PNG."

    again = open_page()
    again.choose(*photos)
    again.wait_until_counted(6)
    again.add_table(text)
    expect(again.locator("#tally")).to_have_text("✓ Match: 2✕ Mismatch: 2? Review: 2")


def test_a_full_server_is_asked_again(
    open_page: OpenPage, serve_locally: Serve, photo_file: Callable[..., FilePayload]
) -> None:
    photos = [photo_file(f"{seed}.jpg", seed, (4000, 3000)) for seed in range(5)]  # slow enough to meet
    with serve_locally(max_in_flight=1) as url:
        page = open_page(url)
        statuses: list[int] = []
        page.on("response", lambda response: statuses.append(response.status))
        page.choose(*photos)
        page.wait_until_counted(5)
        expect(page.locator("#tally")).to_have_text("Counted, no record: 5")
        assert 503 in statuses


def test_removing_all_ends_it(open_page: OpenPage, photos: list[FilePayload]) -> None:
    page = open_page()
    page.choose(*photos)
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator("#batch")).to_be_hidden()
    page.choose(photos[0])
    expect(page.locator("#count")).not_to_be_empty()
    assert page.locator("#rows tbody tr").count() == 1


def test_a_token_is_asked_for_and_never_stored(
    open_page: OpenPage, serve_locally: Serve, photos: list[FilePayload], tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("open sesame\n")
    with serve_locally(token_file=str(tmp_path / "tokens")) as url:
        page = open_page(url)
        field = page.get_by_label("Access token")
        expect(field).to_be_focused()
        page.choose(*photos[:4])
        field.fill("wrong")
        field.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The server refused this token.")
        field.fill("open sesame")
        field.press("Enter")
        page.wait_until_counted(4)
        expect(page.locator("#tally")).to_have_text("Counted, no record: 4")
        expect(page.locator("#token")).to_be_hidden()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.reload()
        expect(field).to_be_focused()
