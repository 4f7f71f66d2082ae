"""One photo on the page: its count, its verdict, and what is told when there is none."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import FilePayload, expect

Core = Any  # of conftest.py
OpenPage = Callable[..., Any]

WORDS = {"match": "✓ Match", "mismatch": "✕ Mismatch", "review": "? Review"}


def test_one_photo_shows_what_the_core_counts(
    open_page: OpenPage, core: Core, photos: list[FilePayload], percentage: Callable[[str], float]
) -> None:
    page = open_page()
    page.choose(photos[0])
    of = core.count(photos[0])
    expect(page.locator("#count")).to_have_text(str(of.count))
    shown = [percentage(text) for text in page.locator("#bars .p").all_inner_texts()]
    assert shown == pytest.approx([100 * p for p in of.probabilities], abs=0.1)
    assert page.locator("#bars .top .of").inner_text().split()[0] == str(of.count)
    span = str(of.low) if of.low == of.high else f"{of.low} to {of.high}"
    expect(page.locator("#figures")).to_have_text(f"90 % range{span}Expected value{of.expected_value:.2f}")
    expect(page.locator("#made-by")).to_contain_text(f"Model {core.predictor.version}")
    expect(page.locator("#made-by")).to_contain_text("Answered in")
    expect(page.get_by_role("img", name="Photo 00000.jpg")).to_be_visible()
    expect(page.locator("#status")).to_contain_text(f"00000.jpg: {of.count} item")


def test_a_record_gets_its_verdict(open_page: OpenPage, core: Core, photos: list[FilePayload]) -> None:
    page = open_page()
    page.choose(photos[1])
    answer = page.locator("#verdict")
    for decision, words in WORDS.items():
        quantity = core.quantity_for(decision, photos[1])
        page.expect_quantity(quantity)
        expect(answer).to_contain_text(words)
        expect(answer).to_contain_text("p(match) ")
        expect(answer).to_contain_text(core.predictor.verify(core.count(photos[1]), quantity).sentence)
    page.expect_quantity(40)  # more than the model counts
    expect(answer).to_contain_text("? Review p(match) unknown")


def test_a_quantity_that_is_none_is_not_sent(open_page: OpenPage, photos: list[FilePayload]) -> None:
    page = open_page()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if "verify" in request.url else None)
    page.choose(photos[0])
    expect(page.locator("#count")).not_to_be_empty()
    for wrong in ("-1", "1.5", "1000000000"):
        page.expect_quantity(wrong)
        assert not page.expected.evaluate("field => field.checkValidity()")
    assert sent == []


def test_flags_are_told_in_words(open_page: OpenPage, core: Core, photo_file: Callable[..., FilePayload]) -> None:
    photo = photo_file("small.jpg", size=(40, 30))
    flags = core.predictor.decode(photo["buffer"])[1].flags
    page = open_page()
    page.choose(photo)
    expect(page.locator("#count")).not_to_be_empty()
    expect(page.locator("#flags li")).to_have_count(len(flags))
    assert all(words.startswith("The photo is ") for words in page.locator("#flags li").all_inner_texts())


def test_a_preview_is_what_the_model_sees_whatever_exif_says(open_page: OpenPage) -> None:
    """The model takes no notice of EXIF, so a preview that is turned would show another photo than was counted."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = Image.new("RGB", (320, 240), "white")
    image.paste("black", (0, 0, 160, 240))
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    page = open_page()
    named: list[FilePayload] = [
        {"name": name, "mimeType": "image/jpeg", "buffer": file.getvalue()} for name in ("a.jpg", "b.jpg")
    ]
    page.choose(*named)
    page.wait_until_counted(2)
    row = Image.open(io.BytesIO(page.locator("#rows tbody td.photo img").first.screenshot()))
    page.get_by_role("button", name="a.jpg", exact=True).click()
    expect(page.locator("#size")).to_contain_text("320")
    preview = Image.open(io.BytesIO(page.locator("#photo").screenshot()))
    for shown in (row.convert("L"), preview.convert("L")):
        middle = shown.height // 2
        left, right = (shown.getpixel((shown.width * part // 4, middle)) for part in (1, 3))
        assert left < 50
        assert right > 200


def test_a_refused_photo_shows_the_servers_words(open_page: OpenPage, no_photo: FilePayload) -> None:
    page = open_page()
    page.choose(no_photo)
    expect(page.locator("#failure")).to_contain_text("The bytes are neither JPEG nor PNG.")
    expect(page.locator("#status")).to_contain_text("broken.jpg: The bytes are neither")
    expect(page.locator("#answer")).to_be_hidden()


def test_a_file_that_is_no_picture_is_not_sent(open_page: OpenPage) -> None:
    page = open_page()
    page.choose({"name": "film.mp4", "mimeType": "video/mp4", "buffer": bytes(1000)})
    expect(page.locator("#failure")).to_contain_text("it was not sent")


def test_a_lost_network_is_told_and_can_be_tried_again(
    open_page: OpenPage, core: Core, photos: list[FilePayload]
) -> None:
    page = open_page()
    expect(page.locator("#model-facts")).to_contain_text(core.predictor.version)
    page.context.set_offline(True)
    page.choose(photos[0])
    expect(page.locator("#failure")).to_contain_text("The server cannot be reached.")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").last.click()
    expect(page.locator("#count")).to_have_text(str(core.count(photos[0]).count))
    expect(page.locator("#failure")).to_be_hidden()


def test_the_model_tells_of_itself(open_page: OpenPage, core: Core) -> None:
    page = open_page()
    page.get_by_text("About the model").click()
    facts = page.locator("#model-facts")
    version = core.predictor.version
    for words in (version, "78.1 % of 512 validation photos", "95.4 %", "512 photos of s3://bins", "30.0 %"):
        expect(facts).to_contain_text(words)
