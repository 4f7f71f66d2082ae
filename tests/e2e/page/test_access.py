"""The page for everybody: by keyboard alone, on a phone, in both colour schemes, for those who hear it."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import FilePayload, expect

Core = Any  # of conftest.py
OpenPage = Callable[..., Any]

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def test_with_the_keyboard_alone(open_page: OpenPage, core: Core, photos: list[FilePayload]) -> None:
    page = open_page()
    page.on("filechooser", lambda _: None)  # from now on Chromium is told not to show one; a moment too late is never
    page.keyboard.press("Tab")
    expect(page.get_by_label("Choose photos")).to_be_focused()
    ring = page.locator("label[for=photos]").evaluate("label => getComputedStyle(label).outlineStyle")
    assert ring == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(photos[:2])
    page.wait_until_counted(2)
    page.get_by_role("button", name="Save as CSV").focus()
    page.keyboard.press("Tab")
    first = page.locator("#rows tbody tr button").first
    expect(first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.expected).to_be_focused()
    page.keyboard.type(str(core.quantity_for("match", photos[0])))
    page.keyboard.press("Tab")
    expect(page.locator("#verdict")).to_contain_text("✓ Match")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="00000.jpg", exact=True)).to_be_focused()


def test_a_row_stays_where_it_is_while_somebody_types_in_it(
    open_page: OpenPage, core: Core, photos: list[FilePayload]
) -> None:
    page = open_page()
    page.choose(*photos[:3])
    page.wait_until_counted(3)
    field = page.get_by_label("Expected quantity of 00002.jpg")
    field.fill(str(core.quantity_for("mismatch", photos[2])))
    page.keyboard.press("Enter")
    expect(page.locator("#tally")).to_contain_text("✕ Mismatch: 1")
    expect(field).to_be_focused()
    page.get_by_role("button", name="Save as CSV").focus()
    expect(page.locator("#rows tbody tr").first).to_contain_text("00002.jpg")


def test_a_narrow_phone_needs_no_sideways_scrolling(open_page: OpenPage, photos: list[FilePayload]) -> None:
    page = open_page(**PHONE)
    expect(page.get_by_text("Take a photo")).to_be_visible()
    for num_photos in (0, 1, 6):
        if num_photos:
            page.get_by_label("Choose photos").set_input_files(photos[min(1, num_photos - 1) : num_photos])
            page.locator("#rows tbody tr", has_text="00000.jpg" if num_photos == 1 else "00005.jpg").wait_for(
                state="attached"
            )
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.wait_until_counted(6)
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
def test_all_text_has_contrast_and_controls_have_names(
    open_page: OpenPage,
    core: Core,
    photos: list[FilePayload],
    no_photo: FilePayload,
    records: dict[str, int],
    scheme: str,
) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    page.get_by_text("About the model").click()
    page.choose(photos[0])
    page.add_table(f"00000,{core.quantity_for('review', photos[0])}\nbroken,x")
    expect(page.locator("#verdict")).to_contain_text("? Review")
    found = page.evaluate(CONTRASTS)
    names = page.locator("body").aria_snapshot()
    page.choose(*photos[1:], no_photo)
    page.add_table("".join(f"{name},{quantity}\n" for name, quantity in records.items()))
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
