import io

from rich.console import Console
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.reports.machine import Machine
from zfserve_bench.reports.tables import print_machine, print_report, row

HELD = Finding("held", Quantity(50.0, "ms"), Quantity(49.0, "ms"), Quantity(1.0, "ms"), Limit("at most", 1.5))
MISSED = Finding("missed", Quantity(46.0), Quantity(50.0), Quantity(0.9), Limit("at least", 0.92))
FREE = Finding("free [x]", Quantity(3.0, "s"), None, Quantity(3.0, "s"))


def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def printed(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def test_a_row_has_figure_limit_their_ratio_and_the_verdict() -> None:
    assert row(HELD) == ("held", "50.0 ms", "49.0 ms", "1.00 ms", "≤ 1.5 ms", "0.67", "[green]pass[/]")
    assert row(MISSED)[4:] == ("≥ 0.92", "0.98", "[bold red]MISS[/]")
    assert row(FREE)[2:] == ("", "3.00 s", "", "", "")


def test_a_report_is_a_markdown_table_with_its_notes() -> None:
    on = console()
    print_report(on, Report("Title", "beside", "share", (HELD, MISSED, FREE), ("a note [with brackets]",)))
    lines = [line.strip() for line in printed(on).splitlines() if line.strip()]
    assert lines[0] == "Title"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:-1]]
    assert rows[0] == ["", "zfserve", "beside", "share", "limit", "of limit", ""]
    assert set("".join(rows[1])) == {"-"}
    assert rows[2] == ["held", "50.0 ms", "49.0 ms", "1.00 ms", "≤ 1.5 ms", "0.67", "pass"]
    assert rows[3][-1] == "MISS"
    assert rows[4][0] == "free [x]"
    assert lines[-1] == "- a note [with brackets]"


def test_without_limits_their_columns_are_left_out_and_details_follow_the_figure() -> None:
    on = console()
    timed = Finding("a", Quantity(20.0), Quantity(40.0), Quantity(0.5), details=(Quantity(3e-7), None))
    print_report(on, Report("Title", "at best", "share", (timed,), measured="images/s", details=("off by", "top-1")))
    lines = [line.strip() for line in printed(on).splitlines() if line.strip()]
    heading, _, only = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:])
    assert heading == ["", "images/s", "at best", "share", "off by", "top-1"]
    assert only == ["a", "20.0", "40.0", "0.50", "3e-07", ""]


def test_a_report_without_findings_has_notes_and_no_table() -> None:
    on = console()
    print_report(on, Report("Title", "", "", (), ("skipped: no photos",)))
    assert printed(on) == "\nTitle\n- skipped: no photos\n"


def test_the_machine_takes_two_lines() -> None:
    on = console()
    machine = Machine("A CPU", 2, 8, "Linux 6, x86_64", {"Python": "3.11.7", "torch": "2.13"}, 0.25, "2026-11-24T10:00")
    print_machine(on, machine)
    assert printed(on) == (
        "2026-11-24T10:00: A CPU, 2 of 8 cores, Linux 6, x86_64\nPython 3.11.7, torch 2.13; load 0.2\n"
    )
