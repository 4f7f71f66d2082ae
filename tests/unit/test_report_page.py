"""The page: it needs nothing but itself, every picture has an alternative, and no text of a record becomes markup."""

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bintally.source_config import DataConfig
from data.bucket import open_bucket
from data.facts import BinFacts, to_table
from data.findings import Findings
from data.report_html import table, text
from data.report_page import render_page
from data.report_photos import SHOWN_SIDE, load_photos, load_product_names, shrink_photo
from data.report_plots import draw_all, draw_sheet, draw_with_threshold
from data.reporting import progress_of
from data.split import Split
from data.summary import Bins

VOID = {"meta", "img", "br", "hr", "link"}
HOSTILE = '<img src=x onerror="alert(1)">&"\'</table><script>alert(2)</script>'


class Page(HTMLParser):
    """Collects the tags, and checks that each is closed in turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def facts_of_everything() -> list[BinFacts]:
    """A bin for every chapter: all counts, a twin pair, a contradiction, two that look wrong, faults."""
    rng = np.random.default_rng(0)

    def good(bin_id: int, count: int, clutter: float, *asins: str, seed: int | None = None) -> BinFacts:
        picture = np.random.default_rng(bin_id if seed is None else seed).integers(0, 256, 256, dtype=np.uint8)
        return BinFacts(
            bin_id=f"{bin_id:05d}",
            count=count,
            asins=asins,
            width=int(rng.integers(300, 700)),
            height=int(rng.integers(300, 700)),
            photo_bytes=int(rng.integers(2e4, 9e4)),
            record_bytes=2000,
            luma=float(rng.uniform(60, 160)),
            sharpness=float(rng.uniform(10, 500)),
            clutter=clutter,
            thumb=picture.tobytes(),
        )

    bins = [good(number, number % 9, 0.05 if number % 9 == 0 else 0.1, f"B{number // 2}") for number in range(1, 60)]
    bins += [good(70, 2, 0.1, HOSTILE, seed=0), good(71, 4, 0.1, HOSTILE, seed=0), good(72, 4, 0.1, HOSTILE)]
    bins += [good(80, 0, 0.3), good(90, 4, 0.01)]
    bins.append(BinFacts(bin_id="00100", fault="quantity_mismatch", detail=f"4 but 5 {HOSTILE}"))
    return [*bins, BinFacts(bin_id="00101", fault="missing_image")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, photo: Callable[..., bytes]) -> str:
    folder = tmp_path_factory.mktemp("report")
    return rendered(to_table(facts_of_everything()), folder, photo)


def rendered(facts: object, folder: Path, photo: Callable[..., bytes], *, max_count: int = 5) -> str:
    data = DataConfig(source="file:///bins/<b>here</b>", max_count=max_count)
    ids = facts["bin_id"].to_pylist()  # type: ignore[index]
    splits: dict[Split, list[str]] = {"train": ids[::2], "val": ids[1::2], "test": []}
    findings = Findings.of(facts, splits, data)
    json.dumps(findings.to_json())
    shown = shrink_photo(photo(size=(320, 200)))
    assert shown is not None
    photos = dict.fromkeys(findings.shown_ids()[1:], shown)  # the first cannot be read
    return render_page(findings, draw_all(findings, Bins.of(facts), folder), photos, {HOSTILE: HOSTILE})


def test_the_page_is_well_formed_and_speaks_a_language(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in parsed.all("meta")
    assert any(meta.get("name") == "viewport" for meta in parsed.all("meta"))
    assert len(parsed.all("h1")) == 1


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    parsed = Page(page)
    assert parsed.all("script") == parsed.all("link") == parsed.all("iframe") == []
    for name in ("src", "href", "srcset", "poster", "data"):
        for value in (attributes[name] for _, attributes in parsed.tags if attributes.get(name)):
            assert str(value).startswith(("data:image/", "#")), value
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_every_picture_says_what_it_shows_and_how_large_it_is(page: str) -> None:
    pictures = Page(page).all("img")
    assert len(pictures) > 50
    for picture in pictures:
        assert picture["alt"]
        assert int(picture["width"] or 0) > 0
        assert int(picture["height"] or 0) > 0


def test_links_lead_to_chapters_with_a_heading(page: str) -> None:
    parsed = Page(page)
    chapters = {str(section["id"]): section["aria-labelledby"] for section in parsed.all("section")}
    assert [str(link["href"])[1:] for link in parsed.all("a")] == list(chapters)
    headings = {heading.get("id") for heading in parsed.all("h2")}
    assert set(chapters.values()) == headings


def test_hostile_names_stay_text(page: str) -> None:
    parsed = Page(page)
    assert all(not name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert "<b>here" not in page
    assert "alert(2)" in page
    assert text(HOSTILE) in page


def test_each_kind_of_suspect_is_shown_with_how_it_was_found(page: str) -> None:
    for title in (
        "contradict themselves",
        "Same bin, same count",
        "Same bin, same photo",
        "Empty by the record",
        "Filled by the record",
    ):
        assert f"{title}" in page
    assert "1</b> records that contradict themselves" in page
    assert "no readable photo" in page


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ([BinFacts(bin_id="00001", count=0, width=9, height=9, thumb=bytes(256))], "every bin of 0 to 5"),
        ([BinFacts(bin_id="00001", count=9, width=9, height=9, thumb=bytes(256))], "unbounded"),
        ([BinFacts(bin_id="x", count=300, asins=("A",), width=9, height=9, thumb=bytes(256))], "fullest 300"),
    ],
    ids=["one empty bin", "all above max_count", "an id that is no number"],
)
def test_a_bucket_of_one_odd_bin_is_shown(
    facts: list[BinFacts], says: str, tmp_path: Path, photo: Callable[..., bytes]
) -> None:
    page = rendered(to_table(facts), tmp_path, photo)
    assert Page(page).open == []
    assert says in page


def test_a_leak_and_a_sample_of_ids_are_told(page: str, tmp_path: Path, photo: Callable[..., bytes]) -> None:
    assert "are divided between two splits" in page
    assert "Few neighbours" not in page
    apart = [BinFacts(bin_id=f"{n:05d}", count=1, width=9, height=9, thumb=bytes(256)) for n in (1, 5, 9)]
    sample = rendered(to_table(apart), tmp_path, photo)
    assert "None of the sharing pairs is divided" in sample
    assert "Few neighbours" in sample


@pytest.mark.parametrize("values", [[0.0], [0.0, 500.0], [89.9, 90.1], [1e4, 1.1e4]])
def test_bars_are_few_and_none_lies_on_both_sides_of_the_threshold(values: list[float]) -> None:
    axes = Figure().subplots()
    draw_with_threshold(axes, np.array(values), 90.0, "brightness", "dark")
    sides = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert len(sides) <= 2 * 42
    assert all(right <= 90.0 + 1e-6 or left >= 90.0 - 1e-6 for left, right in sides)
    assert sum(bar.get_height() for bar in axes.patches) == len(values)


def test_cells_are_escaped() -> None:
    assert "<script>" not in table((HOSTILE,), [(HOSTILE, HOSTILE)], label=HOSTILE)


def test_photos_are_shrunk_and_what_is_none_is_left_out(
    bucket_dir: Callable[..., Path], photo: Callable[..., bytes]
) -> None:
    broken = {"bin-images/00002.jpg": b"<html>", "bin-images/00003.jpg": photo(size=(900, 600))[:5000]}
    folder = bucket_dir({"00001": 1, "00002": 1, "00003": 1, "00004": 1}, broken=broken)
    (folder / "bin-images/00001.jpg").write_bytes(photo(size=(900, 600)))
    (folder / "bin-images/00004.jpg").unlink()
    bucket = open_bucket(DataConfig(source=f"file://{folder}"))
    photos = load_photos(bucket, ["00001", "00002", "00003", "00004"])
    assert list(photos) == ["00001"]
    with Image.open(io.BytesIO(photos["00001"].jpeg)) as image:
        assert image.size == (photos["00001"].width, photos["00001"].height) == (SHOWN_SIDE, SHOWN_SIDE * 2 // 3)
    names = load_product_names(bucket, {"B000000001": "00001", "B000000002": "00001", "B3": "00009"})
    assert names == {}  # the least records have no names


def test_names_come_from_the_record_of_a_bin_that_holds_the_product(bucket_dir: Callable[..., Path]) -> None:
    record = {"BIN_FCSKU_DATA": {"X1": {"asin": "B1", "name": "a lamp", "quantity": 1}}, "EXPECTED_QUANTITY": 1}
    folder = bucket_dir({"00001": 1}, broken={"metadata/00001.json": json.dumps(record).encode()})
    bucket = open_bucket(DataConfig(source=f"file://{folder}"))
    assert load_product_names(bucket, {"B1": "00001"}) == {"B1": "a lamp"}


def test_a_sheet_is_drawn(tmp_path: Path) -> None:
    photos = list(np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), dtype=np.uint8))
    draw_sheet(photos, list("abcde"), tmp_path / "sheet.png", title="bins")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 100


def test_progress_tells_first_and_last_and_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    show = progress_of(300)
    for done in (100, 200, 300):
        show(done)
    first, last = capsys.readouterr().out.splitlines()
    assert "100 of 300 bins" in first
    assert "300 of 300 bins" in last
    assert "bins/s" in last
