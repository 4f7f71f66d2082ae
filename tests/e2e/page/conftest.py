"""The page in a real browser, against a real server in a thread of this process."""

import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Locator, Page, expect, sync_playwright

from bintally.errors import ImageError
from serve.predictor import Counted, Predictor

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DECISIONS = ("match", "mismatch", "review")
REFUSED = "Failed to load resource"  # Chromium logs every answer that is an error, also one that the page expects


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    no_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine to open pages with")
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(no_browser)


class Core:
    """The core alone, which tells what the page has to show."""

    def __init__(self, checkpoint: Path) -> None:
        self.predictor = Predictor.load(checkpoint)

    def count(self, photo: FilePayload) -> Counted:
        """What the model says of a photo."""
        return self.predictor.count([self.predictor.decode(photo["buffer"])[0]])[0]

    def decisions(self, photo: FilePayload) -> dict[str, int]:
        """An expected quantity for each decision that the core comes to."""
        counted = self.count(photo)
        numbers = range(len(counted.probabilities))
        return {self.predictor.verify(counted, number).decision: number for number in numbers}

    def quantity_for(self, decision: str, photo: FilePayload) -> int:
        """An expected quantity by which the core comes to this decision."""
        return self.decisions(photo)[decision]


class OpenPage:
    """A page of Playwright, all of whose methods it has, and what an auditor does with it."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever a page has
        return getattr(self.page, name)

    def choose(self, *photos: FilePayload) -> None:
        """Choose photos."""
        self.page.get_by_label("Choose photos").set_input_files(list(photos))

    def add_table(self, text: str) -> None:
        """Add a record table."""
        table: FilePayload = {"name": "records.csv", "mimeType": "text/csv", "buffer": text.encode()}
        self.page.get_by_label("Add a record table").set_input_files([table])

    @property
    def expected(self) -> Locator:
        """The field of the expected quantity beside a single photo."""
        return self.page.get_by_label("Expected quantity, by the record")

    def expect_quantity(self, quantity: object) -> None:
        """Fill the field in and leave it."""
        self.expected.fill(str(quantity))
        self.expected.press("Tab")

    def wait_until_counted(self, num_photos: int) -> None:
        """Return once so many photos are done."""
        expect(self.page.locator("#status")).to_contain_text(f"{num_photos} of {num_photos} photos are done")

    def rows(self) -> list[tuple[str, str]]:
        """File name and p(match) of each row of the queue."""
        return [
            (row.locator(".photo").inner_text().strip(), row.locator(".p").inner_text().split("\n")[-1])
            for row in self.page.locator("#rows tbody tr").all()
        ]


@pytest.fixture(scope="session")
def core(served_checkpoint: Path) -> Core:
    """What the page has to show."""
    return Core(served_checkpoint)


@pytest.fixture(scope="session")
def percentage() -> Callable[[str], float]:
    """`percentage(text)`: the number in a text as `< 0.1 %`."""

    def read(text: str) -> float:
        found = re.search(r"([\d.]+) %", text)
        assert found, text
        return float(found[1])

    return read


@pytest.fixture(scope="session")
def photo_file() -> Callable[..., FilePayload]:
    """`photo_file(name, seed=, size=)`: a drawn photo, to be chosen."""

    def make(name: str, seed: int = 0, size: tuple[int, int] = (320, 240)) -> FilePayload:
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize(size).save(file, "JPEG")
        return {"name": name, "mimeType": "image/jpeg", "buffer": file.getvalue()}

    return make


@pytest.fixture(scope="session")
def photos(core: Core, photo_file: Callable[..., FilePayload]) -> list[FilePayload]:
    """Six photos, for each of which some expected quantity leads to each decision."""
    drawn = (photo_file(f"{seed:05}.jpg", seed) for seed in range(1000))
    usable = (photo for photo in drawn if len(core.decisions(photo)) == len(DECISIONS))
    return [photo | {"name": f"{place:05}.jpg"} for place, photo in zip(range(6), usable, strict=False)]  # type: ignore[misc]


@pytest.fixture(scope="session")
def no_photo(core: Core) -> FilePayload:
    """A file that its name alone calls a photo."""
    content = b"<html>503 Service Unavailable</html>"
    with pytest.raises(ImageError):
        core.predictor.decode(content)
    return {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": content}


@pytest.fixture(scope="session")
def records(core: Core, photos: list[FilePayload]) -> dict[str, int]:
    """Expected quantities of the photos: two for each decision."""
    return {
        photo["name"]: core.quantity_for(decision, photo) for photo, decision in zip(photos, DECISIONS * 2, strict=True)
    }


@pytest.fixture(scope="session")
def server(serve_locally: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    """The server of most tests."""
    with serve_locally() as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; not for the session, since Playwright's event loop runs meanwhile, and no other may."""
    expect.set_options(timeout=15_000)  # on a busy machine five seconds pass before five photos are counted
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, server: str) -> Iterator[Callable[..., OpenPage]]:
    """`open_page(url, **context)`: the page in a fresh context. No test may log an error or leave the origin."""
    opened: list[tuple[Page, str]] = []
    told: list[str] = []
    asked: list[str] = []

    def make(url: str = server, **context: object) -> OpenPage:
        page = browser.new_context(**context).new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        opened.append((page, url))
        return OpenPage(page)

    yield make
    for page, _ in opened:
        page.context.close()
    own = tuple(f"{scheme}{url}/" for _, url in opened for scheme in ("", "blob:"))
    assert asked
    assert [url for url in asked if not url.startswith(own)] == []
    assert [words for words in told if not words.startswith(REFUSED)] == []
