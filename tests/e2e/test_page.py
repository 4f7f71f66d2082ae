"""The page in a real browser, against a real server: what an auditor does, and what must never happen."""

import csv
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Locator, Page, expect, sync_playwright

from bintally.calibration import Calibration
from bintally.checkpoint import load_checkpoint, save_checkpoint, write_calibration
from bintally.model import build_model
from bintally.recipes import smoke
from bintally.verify import VerifyThresholds, match_probabilities, recount_order
from serve.predictor import Counted, Predictor

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
THRESHOLDS = VerifyThresholds(mismatch=0.08, match=0.3)
WORDS = {"match": "✓ Match", "mismatch": "✕ Mismatch", "review": "? Review"}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
REFUSED = "Failed to load resource"  # Chromium logs every answer that is an error, also one that the page expects

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine to open the page with"),
]

OpenPage = Callable[..., Page]


def make_photo(seed: int = 0, size: tuple[int, int] = (320, 240)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, "JPEG")
    return file.getvalue()


def as_file(name: str, content: bytes, media_type: str = "image/jpeg") -> FilePayload:
    return {"name": name, "mimeType": media_type, "buffer": content}


def as_table(text: str) -> FilePayload:
    return as_file("records.csv", text.encode(), "text/csv")


PHOTOS = [as_file(f"{seed:05}.jpg", make_photo(seed)) for seed in range(6)]
NO_PHOTO = as_file("broken.jpg", b"<html>503 Service Unavailable</html>")


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, so all counts are about as likely; the temperature parts them enough for each verdict."""
    recipe = smoke()
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("page") / "checkpoint"
    model = build_model(recipe.model, num_classes=recipe.data.num_classes)
    save_checkpoint(path, model, recipe, {"val_accuracy": 0.781, "val_within_one": 0.954, "val_num_images": 512})
    calibration = Calibration(
        temperature=0.2,
        thresholds={"0.8": 0.6, "0.9": 0.7, "0.95": 0.8},
        model_version=load_checkpoint(path).version,
        source="s3://bins",
        split="val",
        split_by="grouped",
        num_images=512,
        verify=THRESHOLDS,
    )
    write_calibration(path, calibration)
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint_dir: Path) -> Predictor:
    return Predictor.load(checkpoint_dir)


@contextmanager
def serving(checkpoint_dir: Path, **settings: object) -> Iterator[str]:
    """A local server in a process of its own; the address of its page."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = """if True:
        import json, sys
        from serve.local import serve_local
        from serve.settings import Settings
        serve_local(Settings(**json.loads(sys.argv[1])), "127.0.0.1", int(sys.argv[2]))
    """
    values = json.dumps({"checkpoint": str(checkpoint_dir)} | settings)
    process = subprocess.Popen([sys.executable, "-c", code, values, str(port)], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_until_up(f"http://127.0.0.1:{port}/healthz", process)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


def wait_until_up(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(url, timeout=5):  # noqa: S310  # an address of this test
                return
        except URLError:
            time.sleep(0.1)
    raise AssertionError(f"no answer at {url}")


@pytest.fixture(scope="module")
def server(checkpoint_dir: Path) -> Iterator[str]:
    with serving(checkpoint_dir) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, server: str) -> Iterator[OpenPage]:
    """`open_page(url, **context)`: the page in a fresh context. No test may log an error or leave the origin."""
    opened: list[tuple[Page, str]] = []
    told: list[str] = []
    asked: list[str] = []

    def make(url: str = server, **context: object) -> Page:
        page = browser.new_context(**context).new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        opened.append((page, url))
        return page

    yield make
    for page, _ in opened:
        page.context.close()
    own = tuple(prefix for _, url in opened for prefix in (url, f"blob:{url}"))
    assert asked
    assert [url for url in asked if not url.startswith(own)] == []
    assert [words for words in told if not words.startswith(REFUSED)] == []


def counted(predictor: Predictor, photo: FilePayload) -> Counted:
    return predictor.count([predictor.decode(photo["buffer"])[0]])[0]


def quantity_for(verdict: str, predictor: Predictor, photo: FilePayload) -> int:
    """An expected quantity by which the core comes to this verdict."""
    of = counted(predictor, photo)
    return next(n for n in range(len(of.probabilities)) if predictor.verify(of, n).decision == verdict)


def choose(page: Page, *photos: FilePayload) -> None:
    page.get_by_label("Choose photos").set_input_files(list(photos))


def add_table(page: Page, text: str) -> None:
    page.get_by_label("Add a record table").set_input_files([as_table(text)])


def expect_field(page: Page) -> Locator:
    return page.get_by_label("Expected quantity, by the record")


def wait_until_counted(page: Page, num_photos: int) -> None:
    expect(page.locator("#status")).to_contain_text(f"{num_photos} of {num_photos} photos are done")


def percentage(text: str) -> float:
    """The number in a text as `< 0.1 %`."""
    found = re.search(r"([\d.]+) %", text)
    assert found, text
    return float(found[1])


def shown_rows(page: Page) -> list[tuple[str, str]]:
    """File name and p(match) of each row of the queue."""
    return [
        (row.locator(".photo").inner_text().strip(), row.locator(".p").inner_text().split("\n")[-1])
        for row in page.locator("#rows tbody tr").all()
    ]


# --- One photo ------------------------------------------------------------------------------------------------------


def test_one_photo_shows_what_the_core_counts(open_page: OpenPage, predictor: Predictor) -> None:
    page = open_page()
    choose(page, PHOTOS[0])
    of = counted(predictor, PHOTOS[0])
    expect(page.locator("#count")).to_have_text(str(of.count))
    shown = [percentage(text) for text in page.locator("#bars .p").all_inner_texts()]
    assert shown == pytest.approx([100 * p for p in of.probabilities], abs=0.1)
    assert page.locator("#bars .top .of").inner_text().split()[0] == str(of.count)
    span = str(of.low) if of.low == of.high else f"{of.low} to {of.high}"
    expect(page.locator("#figures")).to_have_text(f"90 % range{span}Expected value{of.expected_value:.2f}")
    expect(page.locator("#made-by")).to_contain_text(f"Model {predictor.version}")
    expect(page.locator("#made-by")).to_contain_text("Answered in")
    expect(page.get_by_role("img", name="Photo 00000.jpg")).to_be_visible()
    expect(page.locator("#status")).to_contain_text(f"00000.jpg: {of.count} item")


@pytest.mark.parametrize("verdict", ["match", "mismatch", "review"])
def test_a_record_gets_its_verdict(open_page: OpenPage, predictor: Predictor, verdict: str) -> None:
    quantity = quantity_for(verdict, predictor, PHOTOS[1])
    core = predictor.verify(counted(predictor, PHOTOS[1]), quantity)
    page = open_page()
    choose(page, PHOTOS[1])
    expect_field(page).fill(str(quantity))
    expect_field(page).press("Tab")
    answer = page.locator("#verdict")
    expect(answer).to_contain_text(WORDS[verdict])
    expect(answer).to_contain_text("p(match) ")
    expect(answer).to_contain_text(core.sentence)


def test_a_record_above_what_the_model_counts_is_for_people(open_page: OpenPage) -> None:
    page = open_page()
    choose(page, PHOTOS[0])
    expect_field(page).fill("40")
    expect_field(page).press("Tab")
    expect(page.locator("#verdict")).to_contain_text("? Review p(match) unknown")


@pytest.mark.parametrize("wrong", ["-1", "1.5", "1000000000"])
def test_a_quantity_that_is_none_is_not_sent(open_page: OpenPage, wrong: str) -> None:
    page = open_page()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if "verify" in request.url else None)
    choose(page, PHOTOS[0])
    expect(page.locator("#count")).not_to_be_empty()
    expect_field(page).fill(wrong)
    expect_field(page).press("Tab")
    assert not expect_field(page).evaluate("field => field.checkValidity()")
    assert sent == []


def test_flags_are_told_in_words(open_page: OpenPage, predictor: Predictor) -> None:
    photo = as_file("small.jpg", make_photo(size=(40, 30)))
    flags = predictor.decode(photo["buffer"])[1].flags
    page = open_page()
    choose(page, photo)
    expect(page.locator("#count")).not_to_be_empty()
    expect(page.locator("#flags li")).to_have_count(len(flags))
    assert all(words.startswith("The photo is ") for words in page.locator("#flags li").all_inner_texts())


def test_a_refused_photo_shows_the_servers_words(open_page: OpenPage) -> None:
    page = open_page()
    choose(page, NO_PHOTO)
    expect(page.locator("#failure")).to_contain_text("The bytes are neither JPEG nor PNG.")
    expect(page.locator("#status")).to_contain_text("broken.jpg: The bytes are neither")
    expect(page.locator("#answer")).to_be_hidden()


def test_a_file_that_is_no_picture_is_not_sent(open_page: OpenPage) -> None:
    page = open_page()
    choose(page, as_file("film.mp4", bytes(1000), "video/mp4"))
    expect(page.locator("#failure")).to_contain_text("it was not sent")


def test_a_lost_network_is_told_and_can_be_tried_again(open_page: OpenPage, predictor: Predictor) -> None:
    page = open_page()
    expect(page.locator("#model-facts")).to_contain_text(predictor.version)
    page.context.set_offline(True)
    choose(page, PHOTOS[0])
    expect(page.locator("#failure")).to_contain_text("The server cannot be reached.")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").last.click()
    expect(page.locator("#count")).to_have_text(str(counted(predictor, PHOTOS[0]).count))
    expect(page.locator("#failure")).to_be_hidden()


def test_drop_and_paste(open_page: OpenPage) -> None:
    page = open_page()
    script = """([kind, bytes]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], `${kind}.jpg`, {type: "image/jpeg"}));
        const event = kind === "drop" ? new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true})
            : new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true});
        document.querySelector("main").dispatchEvent(event);
    }"""
    page.evaluate(script, ["drop", list(PHOTOS[0]["buffer"])])
    expect(page.locator("#name")).to_have_text("drop.jpg")
    expect(page.locator("#count")).not_to_be_empty()
    page.evaluate(script, ["paste", list(PHOTOS[1]["buffer"])])
    wait_until_counted(page, 2)
    assert sorted(name for name, _ in shown_rows(page)) == ["drop.jpg", "paste.jpg"]


# --- Several photos -------------------------------------------------------------------------------------------------


def records_of(predictor: Predictor) -> dict[str, int]:
    wanted = ["match", "mismatch", "review", "match", "mismatch", "review"]
    return {
        photo["name"]: quantity_for(verdict, predictor, photo) for photo, verdict in zip(PHOTOS, wanted, strict=True)
    }


def test_the_recount_queue(open_page: OpenPage, predictor: Predictor) -> None:
    records = records_of(predictor)
    page = open_page()
    table = "".join(f"{name},{quantity}\n" for name, quantity in records.items())
    choose(page, *PHOTOS, NO_PHOTO, as_table(f"File,Quantity\n{table}00001.jpg,3\nelse.jpg,three\n"))
    wait_until_counted(page, 7)
    p_match = {photo["name"]: counted(predictor, photo).probabilities[records[photo["name"]]] for photo in PHOTOS}
    rows = shown_rows(page)
    assert [name for name, _ in rows] == [*sorted(p_match, key=p_match.__getitem__), "broken.jpg"]
    for name, text in rows[:-1]:
        assert percentage(text) == pytest.approx(100 * p_match[name], abs=0.1)
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


def test_the_queue_as_csv_says_what_the_table_says_and_can_come_back(open_page: OpenPage, predictor: Predictor) -> None:
    records = records_of(predictor)
    page = open_page()
    evil = as_file('=HYPERLINK("x"),1.jpg', PHOTOS[0]["buffer"])
    choose(page, *PHOTOS, NO_PHOTO, evil)
    wait_until_counted(page, 8)
    for name, quantity in records.items():
        page.get_by_label(f"Expected quantity of {name}").fill(str(quantity))
    page.get_by_role("button", name="Save as CSV").focus()
    expect(page.locator("#tally")).to_have_text("✓ Match: 2✕ Mismatch: 2? Review: 2Counted, no record: 1! Failed: 1")
    text, rows = exported(page)
    assert [row["file"] for row in rows[:6]] == [name for name, _ in shown_rows(page)][:6]
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 9)]
    for row in rows[:6]:
        photo = next(one for one in PHOTOS if one["name"] == row["file"])
        of = counted(predictor, photo)
        core = predictor.verify(of, records[row["file"]])
        assert (row["verdict"], row["count"], row["explanation"]) == (core.decision, str(of.count), core.sentence)
        assert float(row["p_match"]) == pytest.approx(core.p_match, abs=1e-4)
    assert rows[6]["file"] == "'" + evil["name"]  # no formula in a spreadsheet
    assert rows[7]["error"] == "The bytes are neither JPEG nor PNG."

    again = open_page()
    choose(again, *PHOTOS)
    wait_until_counted(again, 6)
    add_table(again, text)
    expect(again.locator("#tally")).to_have_text("✓ Match: 2✕ Mismatch: 2? Review: 2")


def test_a_full_server_is_asked_again(open_page: OpenPage, checkpoint_dir: Path) -> None:
    photos = [as_file(f"{seed}.jpg", make_photo(seed, (4000, 3000))) for seed in range(5)]  # slow enough to meet
    with serving(checkpoint_dir, max_in_flight=1) as url:
        page = open_page(url)
        statuses: list[int] = []
        page.on("response", lambda response: statuses.append(response.status))
        choose(page, *photos)
        wait_until_counted(page, 5)
        expect(page.locator("#tally")).to_have_text("Counted, no record: 5")
        assert 503 in statuses


def test_removing_all_ends_it(open_page: OpenPage) -> None:
    page = open_page()
    choose(page, *PHOTOS)
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator("#batch")).to_be_hidden()
    choose(page, PHOTOS[0])
    expect(page.locator("#count")).not_to_be_empty()
    assert page.locator("#rows tbody tr").count() == 1


# --- The token ------------------------------------------------------------------------------------------------------


def test_a_token_is_asked_for_and_never_stored(open_page: OpenPage, checkpoint_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("open sesame\n")
    with serving(checkpoint_dir, token_file=str(tmp_path / "tokens")) as url:
        page = open_page(url)
        field = page.get_by_label("Access token")
        expect(field).to_be_focused()
        choose(page, *PHOTOS[:4])
        field.fill("wrong")
        field.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The server refused this token.")
        field.fill("open sesame")
        field.press("Enter")
        wait_until_counted(page, 4)
        expect(page.locator("#tally")).to_have_text("Counted, no record: 4")
        expect(page.locator("#token")).to_be_hidden()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.reload()
        expect(field).to_be_focused()


# --- For everybody --------------------------------------------------------------------------------------------------


def test_with_the_keyboard_alone(open_page: OpenPage, predictor: Predictor) -> None:
    page = open_page()
    page.on("filechooser", lambda _: None)  # from now on Chromium is told not to show one; a moment too late is never
    page.keyboard.press("Tab")
    expect(page.get_by_label("Choose photos")).to_be_focused()
    ring = page.locator("label[for=photos]").evaluate("label => getComputedStyle(label).outlineStyle")
    assert ring == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(PHOTOS[:2])
    wait_until_counted(page, 2)
    page.get_by_role("button", name="Save as CSV").focus()
    page.keyboard.press("Tab")
    first = page.locator("#rows tbody tr button").first
    expect(first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Tab")
    expect(expect_field(page)).to_be_focused()
    page.keyboard.type(str(quantity_for("match", predictor, PHOTOS[0])))
    page.keyboard.press("Tab")
    expect(page.locator("#verdict")).to_contain_text("✓ Match")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="00000.jpg", exact=True)).to_be_focused()


def test_a_row_stays_where_it_is_while_somebody_types_in_it(open_page: OpenPage, predictor: Predictor) -> None:
    page = open_page()
    choose(page, *PHOTOS[:3])
    wait_until_counted(page, 3)
    field = page.get_by_label("Expected quantity of 00002.jpg")
    field.fill(str(quantity_for("mismatch", predictor, PHOTOS[2])))
    page.keyboard.press("Enter")
    expect(page.locator("#tally")).to_contain_text("✕ Mismatch: 1")
    expect(field).to_be_focused()
    page.get_by_role("button", name="Save as CSV").focus()
    expect(page.locator("#rows tbody tr").first).to_contain_text("00002.jpg")


def test_a_narrow_phone_needs_no_sideways_scrolling(open_page: OpenPage) -> None:
    page = open_page(**PHONE)
    expect(page.get_by_text("Take a photo")).to_be_visible()
    for num_photos in (0, 1, 6):
        if num_photos:
            page.get_by_label("Choose photos").set_input_files(PHOTOS[min(1, num_photos - 1) : num_photos])
            page.locator("#rows tbody tr", has_text="00000.jpg" if num_photos == 1 else "00005.jpg").wait_for(
                state="attached"
            )
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    wait_until_counted(page, 6)
    low = "all => all.filter(one => one.offsetParent && one.offsetHeight < 24).map(one => one.outerHTML)"
    assert page.locator("button, .button, input:not(.file), summary").evaluate_all(low) == []


CONTRASTS = """() => {
    const luminance = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => {
            const share = part / 255;
            return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" && element.parentElement ? behind(element.parentElement) : colour;
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
        const [a, b] = [luminance(getComputedStyle(element).color), luminance(behind(element))];
        found.push([walker.currentNode.data.trim(), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast_and_controls_have_names(open_page: OpenPage, predictor: Predictor, scheme: str) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    page.get_by_text("About the model").click()
    choose(page, PHOTOS[0])
    add_table(page, f"00000,{quantity_for('review', predictor, PHOTOS[0])}\nbroken,x")
    expect(page.locator("#verdict")).to_contain_text("? Review")
    found = page.evaluate(CONTRASTS)
    names = page.locator("body").aria_snapshot()
    choose(page, *PHOTOS[1:], NO_PHOTO)
    add_table(page, "".join(f"{name},{quantity}\n" for name, quantity in records_of(predictor).items()))
    expect(page.locator("#tally")).to_contain_text("! Failed: 1")
    expect(page.locator("#tally")).to_contain_text("✕ Mismatch: 2")
    found += page.evaluate(CONTRASTS)
    names += page.locator("body").aria_snapshot()
    assert len(found) > 100
    assert [(text, round(ratio, 2)) for text, ratio in found if ratio < 4.5] == []
    nameless = ("button", "textbox", "spinbutton", "img", "progressbar", "table", "link", "article")
    lines = [line.strip().rstrip(":") for line in names.splitlines()]
    assert [line for line in lines if line.removeprefix("- ") in nameless] == []
    moving = "document.getAnimations().length + (getComputedStyle(document.querySelector('button')).transitionDuration)"
    assert page.evaluate(f"() => {moving}") == "00s"


def test_the_model_tells_of_itself(open_page: OpenPage, predictor: Predictor) -> None:
    page = open_page()
    page.get_by_text("About the model").click()
    facts = page.locator("#model-facts")
    for words in (predictor.version, "78.1 % of 512 validation photos", "95.4 %", "512 photos of s3://bins", "30.0 %"):
        expect(facts).to_contain_text(words)


# --- Tables and order, which the page works out by itself -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "records", "problems"),
    [
        pytest.param("file,expected_quantity\na.jpg,3\n", {"a": 3}, 0, id="plain"),
        pytest.param("\ufeffFile;Notes;Qty\r\nA.JPG;x;3\r\n\r\n", {"a": 3}, 0, id="excel"),
        pytest.param("photo\tquantity\nbins/a.png\t0", {"a": 0}, 0, id="tabs-and-folders"),
        pytest.param("a.jpg,3\nb.jpg,4.0", {"a": 3, "b": 4}, 0, id="no-head"),
        pytest.param('file,quantity\n"a ""1"", b.jpg","7"', {'a "1", b': 7}, 0, id="quotes"),
        pytest.param("file,quantity\na,-1\nb,1e3\nc,\nd,100001\n,4\ne", {}, 6, id="no-quantities"),
        pytest.param("a,1\na.jpg,2", {"a": 1}, 1, id="twice"),
        pytest.param("", {}, 0, id="empty"),
    ],
)
def test_record_tables(open_page: OpenPage, text: str, records: dict[str, int], problems: int) -> None:
    script = """async (text) => {
        const { readRecords } = await import("/page/records.js");
        const { quantities, problems } = readRecords(text);
        return [Object.fromEntries(quantities), problems];
    }"""
    quantities, told = open_page().evaluate(script, text)
    assert (quantities, len(told)) == (records, problems)


def test_the_order_is_that_of_the_core(open_page: OpenPage) -> None:
    random = np.random.default_rng(0)
    calibrated = random.dirichlet(np.full(6, 0.3), 40)
    calibrated[5:8] = calibrated[4]  # ties of p(match), parted by the discrepancy or not at all
    expected = random.integers(0, 9, 40)  # some above what the model counts
    p_match = match_probabilities(calibrated, expected)
    items = [
        {
            "state": "done",
            "place": place,
            "counted": {"probabilities": {str(count): p for count, p in enumerate(row)}},
            "verdict": {
                "expected_quantity": int(quantity),
                "p_match": None if np.isnan(p_match[place]) else float(p_match[place]),
            },
        }
        for place, (row, quantity) in enumerate(zip(calibrated.tolist(), expected, strict=True))
    ]
    script = """async (items) => {
        const { recountOrder } = await import("/page/records.js");
        return recountOrder(items).map((item) => item.place);
    }"""
    assert open_page().evaluate(script, items) == recount_order(calibrated, expected).tolist()
