"""Defines the results of benchmarks: quantities, their limits, and whether they hold.

Every benchmark returns a `Report`, which `tables` prints.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quantity:
    """Holds a number with a unit.

    Attributes:
        value: an int for a count. NaN if there was nothing to measure, for example no refusal.
        unit: "" for a ratio or a plain count.
    """

    value: float
    unit: str = ""

    def __str__(self) -> str:
        if isinstance(self.value, int):
            return f"{self.value:,} {self.unit}".rstrip()
        if math.isnan(self.value):
            return "none"
        size = abs(self.value)
        digits = ",.0f" if size >= 100 else ",.1f" if size >= 10 else ".2f" if size >= 0.01 or size == 0 else ".0e"
        return f"{self.value:{digits}} {self.unit}".rstrip()


@dataclass(frozen=True)
class Limit:
    """Bounds a figure, in the figure's unit."""

    sense: Literal["at least", "at most"]
    bound: float

    def holds(self, value: float) -> bool:
        """Returns True if `value` keeps to the bound. NaN never does."""
        return value >= self.bound if self.sense == "at least" else value <= self.bound


@dataclass(frozen=True)
class Finding:
    """Holds one row of a report.

    Attributes:
        measured: the quantity of zfserve.
        reference: the quantity it is compared with; None if it stands alone.
        figure: the quantity that the limit bounds: `measured` itself, its ratio to `reference`, or the difference.
        limit: the limit; None if the figure is for information.
        details: further quantities, one for each heading in `Report.details`; None if one is unknown.
    """

    name: str
    measured: Quantity
    reference: Quantity | None
    figure: Quantity
    limit: Limit | None = None
    details: tuple[Quantity | None, ...] = ()

    @property
    def holds(self) -> bool | None:
        """Returns True if the figure keeps to its limit; None without a limit."""
        return None if self.limit is None else self.limit.holds(self.figure.value)


@dataclass(frozen=True)
class Report:
    """Holds the result of one benchmark.

    Attributes:
        title: the title of the table.
        reference: the heading of the findings' references.
        figure: the heading of their figures.
        notes: sentences on how it was measured, and on what was left out.
        measured: the heading of the measured quantities.
        details: the headings of the details.
    """

    title: str
    reference: str
    figure: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    measured: str = "zfserve"
    details: tuple[str, ...] = ()


def missed(reports: Iterable[Report]) -> list[Finding]:
    """Returns the findings that miss their limit."""
    return [finding for report in reports for finding in report.findings if finding.holds is False]
