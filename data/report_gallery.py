"""The parts of the page that show photos: samples per count, same-bin pairs, suspected labels."""

from collections.abc import Mapping
from typing import Final

from data.findings import SHOWN_SUSPECTS, Findings
from data.report_html import bullets, paragraph, photo, section, text
from data.report_photos import ShownPhoto
from data.suspects import MIN_EMPTY_BINS, TWIN_CORRELATION, TWIN_DIFFERENCE, Kind, Pair, Suspect

Photos = Mapping[str, ShownPhoto]

_KIND_TITLES: Final[dict[Kind, tuple[str, str]]] = {
    "contradiction": (
        "Records that contradict themselves",
        "The quantities of the items do not add up to EXPECTED_QUANTITY. Such bins are dropped.",
    ),
    "same_count": (
        "Same bin, same count",
        (
            "Consecutive ids that share a product have a pick or a stow between them, so their counts should differ."
            " Of 318 such pairs of ABID none has equal counts."
        ),
    ),
    "same_photo": (
        "Same bin, same photo, other count",
        (
            "Consecutive ids that share a product and whose grey thumbnails of 16 pixels correlate by"
            f" {TWIN_CORRELATION} or more, though the counts differ by {TWIN_DIFFERENCE} items or more. Either the"
            " change is hidden, or a record does not belong to its photo."
        ),
    ),
    "not_empty": (
        "Empty by the record, not by the photo",
        (
            "The record says 0 items, but the photo has more clutter (slope between the pixels of its 32-pixel"
            " thumbnail) than half of the bins that hold something."
        ),
    ),
    "looks_empty": (
        "Filled by the record, empty by the photo",
        (
            "The record says 1 item or more, but the photo has less clutter than nine of ten empty bins. Large plain"
            " boxes end up here, too."
        ),
    ),
}


def sample_section(findings: Findings, photos: Photos) -> str:
    """Photos for each count."""
    parts = [
        f"<h3>{text(_items(count))}</h3>{_grid([_sample(bin_id, count, photos) for bin_id in ids])}"
        for count, ids in findings.samples.items()
        if ids
    ]
    intro = "Bins spread evenly over the ids, by the count of their record. Can you count them yourself?"
    return section("samples", "Samples per count", paragraph(intro), *parts)


def _items(count: str) -> str:
    return "1 item" if count == "1" else f"{count} items"


def _grid(figures: list[str]) -> str:
    return f'<div class="photos">{"".join(figures)}</div>'


def _sample(bin_id: str, count: str, photos: Photos) -> str:
    alt = f"Bin {bin_id}; its record says {_items(count)}"
    return photo(photos.get(bin_id), alt=alt, caption=f"<code>{text(bin_id)}</code>")


def pair_list(findings: Findings, photos: Photos) -> str:
    """Pairs suspected to be one bin, side by side."""
    return f'<ul class="pairs">{"".join(_pair(pair, photos) for pair in findings.pairs)}</ul>'


def _pair(pair: Pair, photos: Photos) -> str:
    sign = "+" if pair.difference > 0 else "\N{MINUS SIGN}"
    verdict = f"{sign}{_items(str(abs(pair.difference)))}" if pair.difference else "same count"
    shown = _side_by_side((pair.first, pair.second), pair.counts, photos)
    return f'<li class="pair">{shown}<p><b>{verdict}</b>; photos correlate by {pair.similarity:.2f}</p></li>'


def _side_by_side(ids: tuple[str, ...], counts: tuple[int, ...], photos: Photos) -> str:
    sides = [
        photo(
            photos.get(bin_id),
            alt=f"Bin {bin_id}; its record says {_items(str(count))}",
            caption=f"<code>{text(bin_id)}</code> <b>{_items(str(count))}</b>",
        )
        for bin_id, count in zip(ids, counts, strict=True)
    ]
    return f"<div>{''.join(sides)}</div>"


def suspect_section(findings: Findings, photos: Photos) -> str:
    """Suspected wrong labels, kind by kind, with how each was found."""
    numbers = {kind: sum(one.kind == kind for one in findings.suspects) for kind in _KIND_TITLES}
    intro = (
        "Found from records and pixels alone, without a model. Each is a reason to look, no verdict; items that a"
        " record leaves out and that nothing contradicts are not found this way."
    )
    totals = [f"<b>{number:,}</b> {text(_KIND_TITLES[kind][0]).lower()}" for kind, number in numbers.items()]
    num_empty = findings.counts.bins_by_count.get(0, 0)
    if num_empty < MIN_EMPTY_BINS:
        totals.append(f"only {num_empty} empty bins: too few to tell how empty ones look, so none was compared")
    parts = [_kind(kind, shown, numbers[kind], photos) for kind, shown in findings.shown_suspects().items()]
    return section("suspects", "Suspected wrong labels", paragraph(intro), bullets(totals), *parts)


def _kind(kind: Kind, shown: list[Suspect], number: int, photos: Photos) -> str:
    title, how = _KIND_TITLES[kind]
    note = f" The strongest {SHOWN_SUSPECTS} of {number:,}." if number > len(shown) else ""
    if kind in {"same_count", "same_photo"}:
        body = f'<ul class="pairs">{"".join(_twin(one, photos) for one in shown)}</ul>'
    else:
        body = _grid([_single(one, photos) for one in shown])
    return f"<h3>{text(title)}</h3>{paragraph(text(how + note))}{body}"


def _twin(suspect: Suspect, photos: Photos) -> str:
    shown = _side_by_side(suspect.ids, suspect.counts, photos)
    return f'<li class="pair">{shown}<p>{text(suspect.why)}</p></li>'


def _single(suspect: Suspect, photos: Photos) -> str:
    (bin_id,) = suspect.ids
    caption = f"<code>{text(bin_id)}</code> {text(suspect.why)}"
    return photo(photos.get(bin_id), alt=f"Bin {bin_id}, suspected: {suspect.why}", caption=caption)
