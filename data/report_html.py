"""Pieces of HTML: every text that comes from outside goes through `text`, every picture has an alternative."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final
from urllib.parse import quote

from data.report_photos import ShownPhoto

_TYPES: Final = {".png": "image/png", ".jpg": "image/jpeg"}


class Html(str):
    """Text that is HTML already, for a cell that is more than words."""

    __slots__ = ()


def link(target: str, words: str) -> Html:
    """A link to a file beside the page; both are escaped."""
    return Html(f'<a href="{quote(target)}">{text(words)}</a>')


def text(value: object) -> str:
    """Any value as text that holds no markup, also fit for an attribute in double quotes."""
    return escape(str(value), quote=True)


def image(data: bytes, mime: str, *, alt: str, width: int, height: int) -> str:
    """A picture that is part of the page."""
    uri = f"data:{mime};base64,{b64encode(data).decode()}"
    return f'<img src="{uri}" alt="{text(alt)}" width="{width}" height="{height}" loading="lazy">'


def chart(path: Path, *, alt: str, caption: str) -> str:
    """A drawn figure with what to conclude from it; the caption is HTML."""
    data = path.read_bytes()
    width, height = (int.from_bytes(data[at : at + 4]) for at in (16, 20))  # where a PNG has them
    picture = image(data, _TYPES[path.suffix], alt=alt, width=width, height=height)
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def photo(shown: ShownPhoto | None, *, alt: str, caption: str) -> str:
    """A bin's photo, or a box that says there is none; the caption is HTML."""
    picture = (
        image(shown.jpeg, "image/jpeg", alt=alt, width=shown.width, height=shown.height)
        if shown
        else '<div class="none">no readable photo</div>'
    )
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, label: str, numeric: Iterable[int] = ()) -> str:
    """A table whose first column names the row; columns in `numeric` stand to the right.

    All cells are escaped but those that are `Html`.
    """
    right = set(numeric)

    def cell(tag: str, column: int, value: object, scope: str = "") -> str:
        side = ' class="n"' if column in right else ""
        return f"<{tag}{scope}{side}>{value if isinstance(value, Html) else text(value)}</{tag}>"

    top = "".join(cell("th", column, value, ' scope="col"') for column, value in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(
            cell("td", column, value) if column else cell("th", column, value, ' scope="row"')
            for column, value in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    inner = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">{inner}</div>'


def section(anchor: str, title: str, *parts: str) -> str:
    """One chapter of the page; the parts are HTML."""
    heading = f'<h2 id="{anchor}-title">{text(title)}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-title">{heading}{"".join(parts)}</section>'


def paragraph(html: str) -> str:
    """A paragraph of HTML."""
    return f"<p>{html}</p>"


def bullets(items: Iterable[str]) -> str:
    """A list of HTML items."""
    return f'<ul class="facts">{"".join(f"<li>{item}</li>" for item in items)}</ul>'


def tiles(figures: dict[str, str]) -> str:
    """The few figures that everybody asks for; names and values are escaped."""
    inner = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in figures.items())
    return f'<dl class="tiles">{inner}</dl>'
