"""Prints reports as Markdown tables, which can be pasted into documents."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zfserve_bench.reports.findings import Finding, Report
from zfserve_bench.reports.machine import Machine


def print_machine(console: Console, machine: Machine) -> None:
    """Prints the machine and the versions in two lines."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    cores = f"{machine.cores} of {machine.cores_in_all} cores"
    console.print(f"{machine.date}: {machine.cpu}, {cores}, {machine.system}", highlight=False, soft_wrap=True)
    console.print(f"{versions}; load {machine.load:.1f}", highlight=False, soft_wrap=True)


def print_report(console: Console, report: Report) -> None:
    """Prints a table with one row for each finding, then the notes.

    The column `of limit` is the figure over its limit. Without any limit in the report its columns are left out.
    """
    console.print(f"\n[bold]{report.title}[/]", highlight=False, soft_wrap=True)
    judged = any(finding.limit for finding in report.findings)
    table = Table(box=box.MARKDOWN)
    table.add_column("", no_wrap=True)
    headings = (report.measured, report.reference, report.figure, *report.details)
    for heading in (*headings, "limit", "of limit", "") if judged else headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for finding in report.findings:
        figures, verdict = row(finding)[:4], row(finding)[4:]
        details = ("" if detail is None else str(detail) for detail in finding.details)
        table.add_row(*figures, *details, *(verdict if judged else ()))
    if report.findings:
        console.print(table, highlight=False)
    for note in report.notes:
        console.print(f"- {escape(note)}", highlight=False, soft_wrap=True)


def row(finding: Finding) -> tuple[str, ...]:
    """Returns the cells of a finding: name, measured, reference, figure, limit, figure over limit, and verdict."""
    reference = "" if finding.reference is None else str(finding.reference)
    cells = (escape(finding.name), str(finding.measured), reference, str(finding.figure))
    limit = finding.limit
    if limit is None:
        return (*cells, "", "", "")
    sign = "≥" if limit.sense == "at least" else "≤"
    verdict = "[green]pass[/]" if finding.holds else "[bold red]MISS[/]"
    return (
        *cells,
        f"{sign} {limit.bound:g} {finding.figure.unit}".rstrip(),
        f"{finding.figure.value / limit.bound:.2f}" if limit.bound else "",
        verdict,
    )
