"""The chapters of the page with figures and numbers: counts, photos, products, neighbours."""

from collections.abc import Callable, Mapping
from pathlib import Path

from data.findings import Findings
from data.report_gallery import Photos, pair_list
from data.report_html import bullets, chart, section, table, text
from data.summary import BLURRED_SHARPNESS, DARK_LUMA, Spread

Charts = Mapping[str, Path]


def count_section(findings: Findings, charts: Charts) -> str:
    """Bins per count, and how unequal the classes are."""
    counts = findings.counts
    rows = [
        (
            count,
            f"{number:,}",
            share_of(number, counts.num_bins),
            "used" if count <= counts.max_count else "filtered out",
        )
        for count, number in counts.bins_by_count.items()
    ]
    empty = f" No bin holds {_listed(counts.empty_classes)}." if counts.empty_classes else ""
    caption = (
        f"<b>{counts.num_items:,} items in {counts.num_bins:,} bins</b>, counts {min(counts.bins_by_count)} to"
        f" {counts.largest:,}, mean {counts.mean:.2f}. The largest of the classes 0 to {counts.max_count} is"
        f" {imbalance_of(findings)} the smallest.{empty} Weigh or sample the classes if the rare ones matter."
    )
    alt = f"Bar chart of bins per count; the most frequent of 0 to {counts.max_count} is {counts.majority_count}"
    listing = table(("items", "bins", "share", "training"), rows, label="Bins per count", numeric=(1, 2))
    return section(
        "counts",
        "Counts per bin",
        f'<div class="lone">{chart(charts["counts"], alt=alt, caption=caption)}</div>',
        f"<details><summary>All {len(rows)} counts as a table</summary>{listing}</details>",
    )


def imbalance_of(findings: Findings) -> str:
    """Largest over smallest class, for people."""
    ratio = findings.counts.imbalance
    return "unbounded" if ratio is None else f"{ratio:.1f}\N{MULTIPLICATION SIGN}"


def _listed(counts: tuple[int, ...]) -> str:
    return " or ".join(map(str, counts)) + " items"


def photo_section(findings: Findings, charts: Charts) -> str:
    """Sizes, brightness and sharpness."""
    photos, good = findings.photos, findings.num_good
    captions = {
        "sizes": f"<b>Median {photos.width.median:.0f} \N{MULTIPLICATION SIGN} {photos.height.median:.0f} pixels</b>,"
        f" aspect {photos.aspect.least:.2f} to {photos.aspect.most:.2f}. The further from 1, the more squashing to a"
        " square distorts; letterboxing does not.",
        "bytes": f"<b>Mean {photos.photo_bytes.mean / 1e3:.1f} kB per photo</b> and"
        f" {photos.record_bytes.mean / 1e3:.1f} kB per record.",
        "brightness": f"<b>{photos.num_dark:,} of {good:,} photos are dark</b> ({share_of(photos.num_dark, good)}):"
        f" mean brightness below {DARK_LUMA:.0f} of 255. Median {photos.luma.median:.0f}; 90 % lie between"
        f" {photos.luma.low:.0f} and {photos.luma.high:.0f}, which is the range that augmentation should cover.",
        "sharpness": f"<b>{photos.num_blurred:,} of {good:,} photos are blurred</b>"
        f" ({share_of(photos.num_blurred, good)}): the Laplacian of the grey photo of 224 pixels varies by less than"
        f" {BLURRED_SHARPNESS:.0f}. Plain empty bins lie low, too, so look before you drop any.",
    }
    alts = {
        "sizes": "Scatter plot of photo widths and heights",
        "bytes": "Histogram of bytes per photo",
        "brightness": "Histogram of mean brightness with the limit of dark photos",
        "sharpness": "Histogram of sharpness with the limit of blurred photos",
    }
    figures = "".join(chart(charts[name], alt=alts[name], caption=captions[name]) for name in captions)
    return section("photos", "Photos", f'<div class="figures">{figures}</div>', _spread_table(findings))


def _spread_table(findings: Findings) -> str:
    photos = findings.photos
    figures: dict[str, tuple[Spread, Callable[[float], str]]] = {
        "width, pixels": (photos.width, "{:,.0f}".format),
        "height, pixels": (photos.height, "{:,.0f}".format),
        "aspect, width / height": (photos.aspect, "{:.2f}".format),
        "photo, bytes": (photos.photo_bytes, "{:,.0f}".format),
        "record, bytes": (photos.record_bytes, "{:,.0f}".format),
        "brightness, 0-255": (photos.luma, "{:.0f}".format),
        "sharpness": (photos.sharpness, "{:.0f}".format),
    }
    rows = [
        (name, *map(form, (one.least, one.low, one.median, one.mean, one.high, one.most)))
        for name, (one, form) in figures.items()
    ]
    head = ("", "least", "5 %", "median", "mean", "95 %", "most")
    listing = table(head, rows, label="Spread of sizes, brightness and sharpness", numeric=range(1, 7))
    return f"<h3>In numbers</h3>{listing}"


def product_section(findings: Findings, charts: Charts, names: Mapping[str, str]) -> str:
    """Distinct products and how often they come back."""
    products = findings.products
    caption = (
        f"<b>{products.num_products:,} distinct products (ASINs)</b>, {products.share_in_one_bin:.0%} of them in one"
        f" bin only; {products.products_per_bin:.2f} products per bin, one alone in"
        f" {share_of(products.num_single_product_bins, findings.num_good)} of the bins. A model that is"
        " tested on a product of one bin has never seen it."
    )
    rows = [(names.get(asin, "name unknown"), asin, f"{bins:,}") for asin, bins, _ in products.top]
    listing = table(("product", "ASIN", "bins"), rows, label="Most frequent products", numeric=(2,))
    alt = "Bar chart of how many products occur in one bin, two bins and more"
    return section(
        "products",
        "Products",
        f'<div class="lone">{chart(charts["products"], alt=alt, caption=caption)}</div>',
        f"<h3>Most frequent</h3>{listing}" if rows else "",
    )


def neighbour_section(findings: Findings, charts: Charts, photos: Photos) -> str:
    """Pairs of consecutive ids that are likely one bin."""
    found = findings.neighbours
    parts = [
        (
            f"Of <b>{found.num_neighbours:,}</b> pairs of consecutive ids, <b>{found.num_sharing:,}"
            f" ({found.share_sharing:.0%})</b> share a product; <b>{found.num_differ_by_one:,}"
            f" ({found.share_differ_by_one:.0%})</b> of those differ by exactly one item."
        ),
        _leak(findings),
    ]
    if found.largest_stranger_similarity is not None:
        parts.append(
            f"Neighbours without a common product agree in their photos by {found.largest_stranger_similarity:.2f} at"
            " most (correlation of grey thumbnails of 16 pixels)."
        )
    if found.num_neighbours < findings.num_good / 2:
        parts.append(
            '<span class="tag">Few neighbours:</span> this is a sample of ids. Take a run of them, as'
            " <code>--ids range:1-2000</code>, to see more."
        )
    caption = (
        f"<b>{found.num_differ_by_one:,} of {found.num_sharing:,} differ by one item</b>, which is what a stow or a"
        f" pick leaves; {found.pairs_by_difference.get(0, 0):,} have the same count. Keep neighbours in one split."
    )
    alt = "Bar chart of count differences between neighbours that share a product"
    figure = f'<div class="lone">{chart(charts["neighbours"], alt=alt, caption=caption)}</div>'
    return section("neighbours", "Suspected same-bin pairs", bullets(parts), figure, pair_list(findings, photos))


def _leak(findings: Findings) -> str:
    number, how = findings.neighbours.num_across_splits, f"<code>{text(findings.split_by)}</code>"
    if not number:
        return f"None of the sharing pairs is divided between two splits ({how})."
    return (
        f"<b>{number:,}</b> of the sharing pairs are divided between two splits ({how}): a model scored there has seen"
        " the bin before."
    )


def share_of(part: int, whole: int) -> str:
    """A share for people."""
    return f"{part / whole:.1%}" if whole else "none"
