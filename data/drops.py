"""Dropped rows: each with a reason, counted once however often its row was fetched, and shown.

Tasks all over the cluster report to one small actor per run. It keeps ids, so a retried task or a further epoch counts
nothing twice.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import ray

from bintally.errors import TooManyFaultsError
from data.session import beside_driver

REASONS: Final[dict[str, str]] = {
    "count_above_max": "holds more items than max_count (a filter, not a fault)",
    "missing_image": "no bin-images/<id>.jpg",
    "missing_label": "no metadata/<id>.json",
    "label_not_json": "the record is not JSON",
    "no_quantity": "the record has no EXPECTED_QUANTITY",
    "bad_quantity": "EXPECTED_QUANTITY is no whole number of 0 or more",
    "bad_record": "the items of the record cannot be read",
    "quantity_mismatch": "the items of the record do not add up to EXPECTED_QUANTITY",
    "not_an_image": "the bytes are neither JPEG nor PNG",
    "truncated_image": "the photo ends early or is damaged",
    "absurd_dimensions": "the photo's sides are too small or too large",
    "fetch_failed": "no whole answer after bounded retries",
}
FILTERS: Final = frozenset({"count_above_max"})
"""Reasons that the user asked for; all others are faults."""


@dataclass(frozen=True, slots=True)
class DropLedger:
    """Why each id was dropped. Can be sent to any task; lives as long as one copy does."""

    _actor: Any
    max_faults: int | None = None
    """Ids that may be lost to faults; None allows any number."""

    @classmethod
    def start(cls, *, max_faults: int | None = None) -> Self:
        """An empty ledger on the running Ray."""
        return cls(ray.remote(**beside_driver())(_Ledger).remote(), max_faults)

    def record(self, drops: dict[str, str]) -> None:
        """Add {id: reason}, and wait: a table that is read after the last row must hold all drops.

        Raises:
            TooManyFaultsError: more than max_faults ids are lost to faults by now.
        """
        check_faults(ray.get(self._actor.record.remote(drops)), self.max_faults)

    def check(self) -> None:
        """Find out whether that is why a training failed: what ended its workers comes wrapped by Ray Train.

        Raises:
            TooManyFaultsError: more than max_faults ids are lost to faults by now.
        """
        check_faults(self.table(), self.max_faults)

    def table(self) -> dict[str, int]:
        """Number of distinct ids by reason, most frequent first."""
        table: dict[str, int] = ray.get(self._actor.table.remote())
        return table

    def reasons(self, ids: Sequence[str]) -> dict[str, str]:
        """Why each of these ids was dropped; those that were not, or not yet, are left out."""
        reasons: dict[str, str] = ray.get(self._actor.reasons.remote(list(ids)))
        return reasons

    def describe(self, *, num_kept: int) -> str:
        """The table for people, beside so many rows that were kept."""
        table = self.table()
        return format_table(table, num_kept + sum(table.values()))


class _Ledger:
    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def record(self, drops: dict[str, str]) -> dict[str, int]:
        self._reasons.update(drops)
        return self.table()

    def reasons(self, ids: list[str]) -> dict[str, str]:
        return {bin_id: self._reasons[bin_id] for bin_id in ids if bin_id in self._reasons}

    def table(self) -> dict[str, int]:
        return dict(Counter(self._reasons.values()).most_common())


def check_faults(table: dict[str, int], max_faults: int | None) -> None:
    """Stop a run that loses too much; filters do not count.

    Raises:
        TooManyFaultsError: more than max_faults ids of the drop table are lost to faults.
    """
    faults = {reason: count for reason, count in table.items() if reason not in FILTERS}
    num_faults = sum(faults.values())
    if max_faults is not None and num_faults > max_faults:
        listed = ", ".join(f"{count:,} {reason}" for reason, count in faults.items())
        raise TooManyFaultsError(
            f"{num_faults:,} ids are lost to faults ({listed}), and --max-dropped allows {max_faults:,};"
            " mend the source, or allow more"
        )


def format_table(table: dict[str, int], num_ids: int) -> str:
    """The drop table for people, one line per reason."""
    if not table:
        return f"dropped 0 of {num_ids:,} ids"
    lines = [f"dropped {sum(table.values()):,} of {num_ids:,} ids:"]
    lines += [f"  {count:7,}  {reason:<18} {REASONS[reason]}" for reason, count in table.items()]
    return "\n".join(lines)
