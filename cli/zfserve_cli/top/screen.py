"""Draws a snapshot of the replicas for a terminal of at least 80 columns. `zfserve top` shows it."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zfserve_cli.top.replicas import Replica, Snapshot
from zfserve_cli.top.traffic import MethodTraffic, Percentiles, Traffic

BARS = "▁▂▃▄▅▆▇█"
NOTHING = "-"


def draw(snapshot: Snapshot, history: Sequence[float], window_s: float) -> RenderableType:
    """Returns the whole screen.

    Args:
        snapshot: the state of the replicas.
        history: the calls per second of all replicas, one number for each scrape, the newest last.
        window_s: the time over which rates and percentiles were computed, in seconds.
    """
    parts: list[RenderableType] = [_headline(snapshot, window_s)]
    if snapshot.total is not None:
        parts += [
            _summary(snapshot.total, history),
            Text(),
            _calls(snapshot.total),
            Text(),
            _steps(snapshot.total),
            Text(),
        ]
        parts.append(_replicas(snapshot.replicas))
    parts += [
        Text.assemble(replica.address, "  ", (f"unreachable: {replica.problem}", "red"))
        for replica in snapshot.replicas
        if replica.traffic is None
    ]
    return Group(*parts)


def sparkline(values: Sequence[float]) -> str:
    """Returns a bar for each value. The highest value has a full bar. Each 0 is a blank, and so is a single value."""
    highest = max(values, default=0.0)
    if highest <= 0 or len(values) == 1:
        return " " * len(values)
    return "".join(BARS[min(int(value / highest * len(BARS)), len(BARS) - 1)] if value > 0 else " " for value in values)


def duration(seconds: float | None) -> str:
    """Returns a duration with three digits and a unit."""
    if seconds is None:
        return NOTHING
    if seconds < 0.9995:
        return f"{seconds * 1e3:#.3g}".rstrip(".") + " ms"
    return f"{seconds:#.3g}".rstrip(".") + " s"


def number(value: float | None) -> str:
    """Returns a rate or a count. From 100 up it is rounded to a whole number, and below that to one decimal."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _headline(snapshot: Snapshot, window_s: float) -> Text:
    reached = len(snapshot.replicas) - snapshot.unreachable
    line = Text.assemble(("zfserve top", "bold"), f"   {reached} of {len(snapshot.replicas)} replicas")
    if snapshot.unreachable:
        line.stylize("red", len("zfserve top"))
    if snapshot.total is not None:
        line.append(
            f"   over {min(window_s, snapshot.total.seconds):.0f} s" if snapshot.total.seconds else "   first scrape"
        )
        line.append(f"   {', '.join(snapshot.total.models)}", "dim")
    return line


def _summary(total: Traffic, history: Sequence[float]) -> RenderableType:
    lines = Table.grid(padding=(0, 2))
    lines.add_row("calls/s", Text.assemble((f"{number(total.calls_per_s):>7} ", "bold"), (sparkline(history), "cyan")))
    statuses = "   ".join(f"{status} {number(rate)}" for status, rate in total.per_s.items())
    lines.add_row("status/s", Text(f"{'':7} {statuses or NOTHING}", "red" if set(total.per_s) - {"OK"} else ""))
    fill = "" if total.batch_fill is None else f"   filled {total.batch_fill:.0%}"
    work = f"images/s {number(total.images_per_s)}   projections/s {number(total.projections_per_s)}"
    lines.add_row("batch", f"{number(total.batch_size):>7}{fill}   {work}")
    lines.add_row("queue", f"{number(total.queue_depth):>7}   in flight {number(total.in_flight)}")
    return lines


def _calls(total: Traffic) -> Table:
    table = _table("call", "per s", "failed/s", "p50", "p95", "p99", "in flight")
    table.columns[0].min_width = 20
    for row in total.methods or (MethodTraffic(NOTHING, 0, 0, Percentiles(), 0),):
        failed = Text(number(row.failed_per_s), "red" if row.failed_per_s else "")
        table.add_row(_short(row.method), number(row.per_s), failed, *_percentiles(row.latency), number(row.in_flight))
    return table


def _steps(total: Traffic) -> Table:
    table = _table("step", "p50", "p95", "p99")
    table.columns[0].min_width = 20
    for step, percentiles in total.steps.items():
        table.add_row(step, *_percentiles(percentiles))
    return table


def _replicas(replicas: Sequence[Replica]) -> Table:
    table = _table("replica", "phase", "calls/s", "p95", "batch", "queue", "in flight", "worker")
    table.columns[0].overflow = "fold"
    for replica in replicas:
        traffic = replica.traffic
        if traffic is None:
            continue
        table.add_row(
            replica.address,
            Text(traffic.phase or NOTHING, "" if traffic.phase in ("", "ready") else "yellow"),
            number(traffic.calls_per_s),
            duration(traffic.latency.p95),
            number(traffic.batch_size),
            number(traffic.queue_depth),
            number(traffic.in_flight),
            Text(traffic.worker or NOTHING, "" if traffic.worker in ("", "ready") else "yellow"),
        )
    return table


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="left" if column in ("phase", "worker") else "right", no_wrap=True)
    return table


def _percentiles(values: Percentiles) -> tuple[str, str, str]:
    return duration(values.p50), duration(values.p95), duration(values.p99)


def _short(method: str) -> str:
    """Returns the method without its service. It marks the calls that a server makes to its worker."""
    service, _, name = method.rpartition("/")
    return f"{name} (worker)" if ".worker." in service else name
