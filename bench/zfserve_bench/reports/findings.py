"""What a benchmark found: quantities, the limits they are held to, and whether they hold. Every benchmark returns a
`Report`; `tables` shows it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quantity:
    """A number with its unit; "" where it has none, as a ratio. What is counted is an int; a NaN is the figure of
    something that did not happen, as the time of refusals where none was refused."""

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
    """A bound, in the unit of the figure that is held to it."""

    sense: Literal["at least", "at most"]
    bound: float

    def holds(self, value: float) -> bool:
        """Written so that a NaN fails."""
        return value >= self.bound if self.sense == "at least" else value <= self.bound


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes:
        measured: of zfserve.
        reference: of what it is compared with; None where it stands alone.
        figure: what the limit is about: `measured` itself, its ratio to `reference`, or the difference.
        limit: None where the figure is for information.
        details: further figures, one for each of the report's; None where one is not known.
    """

    name: str
    measured: Quantity
    reference: Quantity | None
    figure: Quantity
    limit: Limit | None = None
    details: tuple[Quantity | None, ...] = ()

    @property
    def holds(self) -> bool | None:
        """None where there is no limit."""
        return None if self.limit is None else self.limit.holds(self.figure.value)


@dataclass(frozen=True)
class Report:
    """One benchmark.

    Attributes:
        reference: what the findings' references are.
        measured: what is measured.
        details: what the findings' details are.
        figure: what their figures are.
        notes: sentences on how it was measured, and on what could not be.
    """

    title: str
    reference: str
    figure: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    measured: str = "zfserve"
    details: tuple[str, ...] = ()


def missed(reports: Iterable[Report]) -> list[Finding]:
    """The findings that do not keep to their limit."""
    return [finding for report in reports for finding in report.findings if finding.holds is False]
