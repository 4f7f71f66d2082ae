"""Rounds of rows to one figure each, tables of them, and whether the aims are met."""

from typing import Any, Final

from benchmarks.parts.serve_rows import limit_of

Row = dict[str, Any]

OURS: Final = ("bintally", "bintally_local")
PEERS: Final = ("ray_fastapi", "litserve", "bentoml", "fastapi")
MIN_SHARE: Final = 0.9
MAX_OVERHEAD_MS: Final = 1.5
MAX_TAIL: Final = 2.0
MIN_SPEED_UP: Final = 3.0
_BEST: Final = {"rps": max, "p50_ms": min, "p99_ms": min, "cpu_ms": min, "others_cores": max, "load_cpu_ms": max}


def best_of(rounds: list[Row]) -> Row:
    """The best of each figure; of memory and of others' load the most, and the errors of all rounds.

    A row that failed once and was measured once keeps its figures and says so.
    """
    measured = [one for one in rounds if "failed" not in one and "missing" not in one]
    if not measured:
        return rounds[0]
    best: Row = {key: _best_figures([one[key] for one in measured]) for key in measured[0] if key[0] == "c"}
    if "rss_mb" in measured[0]:
        best["rss_mb"] = max(one["rss_mb"] for one in measured)
        best["start_s"] = min(one["start_s"] for one in measured)
    if len(measured) < len(rounds):
        best["failed_rounds"] = len(rounds) - len(measured)
    return best


def _best_figures(figures: list[Row]) -> Row:
    best: Row = {}
    for name, choose in _BEST.items():
        values = [one[name] for one in figures if one.get(name) is not None]
        if values:
            best[name] = choose(values)
    errors: dict[str, int] = {}
    for one in figures:
        for status, number in one.get("errors", {}).items():
            errors[status] = errors.get(status, 0) + number
    return best | ({"errors": errors} if errors else {})


def format_rows(rows: dict[str, Row], concurrency: tuple[int, ...]) -> str:
    """A table per concurrency, and one of what a server takes."""
    tables = [_table(rows, f"c{number}") for number in concurrency]
    return "\n\n".join([*tables, _footprints(rows)])


def _table(rows: dict[str, Row], key: str) -> str:
    titles = f"{'rps':>8}{'/limit':>8}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms':>9}{'/limit':>8}{'others':>8}"
    lines = [f"{key + ' clients':<22}{titles}"]
    for name, row in rows.items():
        problem = row.get("missing") or row.get("failed")
        lines.append(f"{name:<22}{problem or _cells(row[key], rows.get(limit_of(name), {}).get(key, {}))}")
    return "\n".join(lines)


def _cells(one: Row, limit: Row) -> str:
    by_rps = _ratio(one.get("rps"), limit.get("rps"))
    by_cpu = _ratio(limit.get("cpu_ms"), one.get("cpu_ms"))
    errors = f"  errors {one['errors']}" if one.get("errors") else ""
    return (
        f"{_show(one.get('rps'), 1):>8}{_show(by_rps, 2):>8}{_show(one.get('p50_ms'), 1):>9}"
        f"{_show(one.get('p99_ms'), 1):>9}{_show(one.get('cpu_ms'), 2):>9}{_show(by_cpu, 2):>8}"
        f"{_show(one.get('others_cores'), 2):>8}{errors}"
    )


def _footprints(rows: dict[str, Row]) -> str:
    lines = [f"{'':<22}{'PSS MB':>8}{'start s':>9}"]
    lines += [f"{name:<22}{row['rss_mb']:>8}{row['start_s']:>9}" for name, row in rows.items() if "rss_mb" in row]
    return "\n".join(lines)


def _show(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def judge_aims(rows: dict[str, Row], concurrency: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Each aim with what was measured; `met` is None where that lacks."""
    many = [f"c{number}" for number in concurrency if number >= 8]
    every = [f"c{number}" for number in concurrency]
    aims: dict[str, dict[str, Any]] = {}
    for name in (*OURS, *(f"{one}_int8" for one in OURS)):
        if name not in rows or "failed" in rows[name]:
            continue
        row, limit = rows[name], rows.get(limit_of(name), {})
        rps = {key: _ratio(_of(row, key, "rps"), _of(limit, key, "rps")) for key in many}
        aims[f"{name}: {MIN_SHARE} of the limit's answers per second, 8 clients and more"] = _aim(
            rps, MIN_SHARE, at_least=True
        )
        extra = {key: _difference(_of(row, key, "cpu_ms"), _of(limit, key, "cpu_ms")) for key in many}
        aims[f"{name}: {MAX_OVERHEAD_MS} ms CPU more than the limit at most, 8 clients and more"] = _aim(
            extra, MAX_OVERHEAD_MS, at_least=False
        )
        tail = {"c32": _ratio(_of(row, "c32", "p99_ms"), _of(row, "c32", "p50_ms"))}
        aims[f"{name}: p99 at most {MAX_TAIL:g} x p50, 32 clients"] = _aim(tail, MAX_TAIL, at_least=False)
    for name in OURS:
        ahead = {key: _lead(rows, name, key) for key in every}
        aims[f"{name}: more answers per second than every other server"] = _aim(ahead, 1.0, at_least=True)
        faster = {key: _ratio(_of(rows, f"{name}_int8", key, "rps"), _of(rows, name, key, "rps")) for key in many}
        aims[f"{name}: in 8 bits {MIN_SPEED_UP:g} x the answers per second"] = _aim(faster, MIN_SPEED_UP, at_least=True)
    return aims


def _lead(rows: dict[str, Row], name: str, key: str) -> float | None:
    others = [rate for peer in PEERS if (rate := _of(rows, peer, key, "rps")) is not None]
    return _ratio(_of(rows, name, key, "rps"), max(others)) if others else None


def _of(row: dict[str, Any], *path: str) -> float | None:
    value: Any = row
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    found: float | None = value
    return found


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _aim(values: dict[str, float | None], bound: float, *, at_least: bool) -> dict[str, Any]:
    known = {key: round(value, 3) for key, value in values.items() if value is not None}
    complete = bool(values) and len(known) == len(values)
    met = all(value >= bound if at_least else value <= bound for value in known.values())
    return {"met": met if complete or not met else None, "measured": known}


def format_aims(aims: dict[str, dict[str, Any]]) -> str:
    """One line each."""
    words = {True: "met", False: "MISSED", None: "not measured"}
    return "\n".join(
        f"{words[aim['met']]:<14}{name}: "
        + (", ".join(f"{key} {value:.2f}" for key, value in aim["measured"].items()) or "-")
        for name, aim in aims.items()
    )
