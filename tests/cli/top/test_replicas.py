"""Tests `zfserve top` with replicas whose metrics are written by hand and served over HTTP."""

import argparse
import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console
from zfserve_cli.top import top_command, traffic
from zfserve_cli.top.replicas import Replicas
from zfserve_cli.top.screen import draw, sparkline
from zfserve_cli.top.traffic import STEPS
from zfserve_runtime.telemetry.metrics import Metrics

CLASSIFY = 'method="/zfserve.v1.VisionService/Classify"'


def page(calls: int, slow: int = 0, refused: int = 0, **gauges: float) -> str:
    """Returns the metrics of a replica that answered `calls` in batches of 4: `slow` of them in 10 to 20 ms, the others
    within 10 ms."""
    return f"""\
# TYPE zfserve_requests_total counter
zfserve_requests_total{{{CLASSIFY},status="OK"}} {calls}
zfserve_requests_total{{{CLASSIFY},status="RESOURCE_EXHAUSTED"}} {refused}
zfserve_requests_total{{method="/grpc.health.v1.Health/Check",status="OK"}} 1000
zfserve_request_seconds_bucket{{{CLASSIFY},le="0.01"}} {calls - slow}
zfserve_request_seconds_bucket{{{CLASSIFY},le="0.02"}} {calls}
zfserve_request_seconds_bucket{{{CLASSIFY},le="+Inf"}} {calls}
zfserve_batch_size_sum{{model="zfnet",version="1"}} {calls}
zfserve_batch_size_count{{model="zfnet",version="1"}} {calls / 4}
zfserve_batch_fill_ratio_sum{{model="zfnet",version="1"}} {calls / 8}
zfserve_batch_fill_ratio_count{{model="zfnet",version="1"}} {calls / 4}
zfserve_queue_depth{{model="zfnet",version="1"}} {gauges.get("queue", 0)}
zfserve_in_flight{{{CLASSIFY}}} {gauges.get("in_flight", 0)}
zfserve_in_flight{{method="/grpc.health.v1.Health/Watch"}} 7
zfserve_worker_pairing{{state="ready"}} 1
zfserve_worker_pairing{{state="down"}} 0
zfserve_startup_phase{{phase="ready"}} 1
zfserve_startup_phase{{phase="loading"}} 0
zfserve_model_info{{model="zfnet",version="1",fingerprint="ab"}} 1
"""


class Pages:
    """Serves the metrics pages of replicas.

    Attributes:
        at: the page of each replica, by its address.
    """

    def __init__(self) -> None:
        self.at: dict[str, str] = {}

    @contextmanager
    def replica(self) -> Iterator[str]:
        pages = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = pages.at[address]
                self.send_response(200 if self.path == "/metrics" else 404)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        address = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield address
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
def two(pages: Pages) -> Iterator[tuple[str, str]]:
    with pages.replica() as first, pages.replica() as second:
        yield first, second


@pytest.fixture
def nobody() -> str:
    """Returns an address where nothing listens: its port was in use a moment ago."""
    with Pages().replica() as address:
        return address


def test_each_replica_has_its_traffic_and_all_are_added_up(pages: Pages, two: tuple[str, str], nobody: str) -> None:
    first, second = two
    now_s = 0.0
    replicas = Replicas([first, nobody, second], window_s=10, clock=lambda: now_s)
    pages.at = {first: page(1000), second: page(500)}
    snapshot = replicas.scrape(5)
    assert snapshot.total is not None
    assert (snapshot.total.seconds, snapshot.total.calls_per_s) == (0, 0), "a single scrape gives no rate"

    now_s = 2.0
    pages.at = {first: page(1080, slow=20, queue=3, in_flight=4), second: page(520, refused=10, queue=1)}
    snapshot = replicas.scrape(5)
    assert [(replica.address, bool(replica.problem)) for replica in snapshot.replicas] == [
        (first, False),
        (nobody, True),
        (second, False),
    ]
    assert snapshot.unreachable == 1
    assert "refused" in snapshot.replicas[1].problem
    total, busy = snapshot.total, snapshot.replicas[0].traffic
    assert total is not None
    assert busy is not None
    assert busy.per_s == {"OK": 40.0}
    assert total.per_s == {"OK": 50.0, "RESOURCE_EXHAUSTED": 5.0}
    # 80 of the first's 80 + 20 calls took at most 10 ms; the other 20 lie between 10 and 20.
    assert astuple(total.latency) == pytest.approx((0.00625, 0.0175, 0.0195))
    (method,) = total.methods
    assert (method.per_s, method.failed_per_s, method.in_flight) == (55.0, 5.0, 4.0)
    assert (total.batch_size, total.batch_fill, total.images_per_s) == (4.0, 0.5, 50.0)
    assert (total.queue_depth, total.in_flight) == (4.0, 4.0), "a health watch does not count"
    assert (total.worker, total.phase, total.models) == ("ready", "ready", ("zfnet 1",))


def test_rates_cover_the_window_and_a_restart_counts_from_0(pages: Pages, two: tuple[str, str]) -> None:
    now_s = 0.0
    replicas = Replicas(two[:1], window_s=2, clock=lambda: now_s)
    rates = []
    for now_s, calls in enumerate((0, 100, 200, 200, 200, 60)):  # noqa: B007 - the clock reads it
        pages.at = {two[0]: page(calls)}
        snapshot = replicas.scrape(5)
        assert snapshot.total is not None
        rates.append((snapshot.total.calls_per_s, snapshot.newest_per_s))
    assert rates == [(0, 0), (100, 100), (100, 100), (50, 0), (0, 0), (30, 60)]


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_fits(pages: Pages, two: tuple[str, str], nobody: str, width: int) -> None:
    now_s = 0.0
    replicas = Replicas([*two, nobody], window_s=10, clock=lambda: now_s)
    for now_s, calls in enumerate((0, 1_234_567)):  # noqa: B007 - the clock reads it
        pages.at = dict.fromkeys(two, page(calls, calls, calls, queue=256, in_flight=256))
        snapshot = replicas.scrape(5)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(draw(snapshot, [1.0] * 60, 10))
    text = console.export_text()
    assert "RESOURCE_EXHAUSTED 2,469,134" in text
    assert "…" not in text, "something was cut off"
    assert f"{nobody}  unreachable" in text
    assert all(f"{address}  ready" in text for address in two)


@pytest.mark.parametrize(("reached", "status"), [(2, 0), (1, 1), (0, 5)])
def test_the_exit_status_of_once(
    pages: Pages, two: tuple[str, str], nobody: str, capsys: pytest.CaptureFixture[str], reached: int, status: int
) -> None:
    pages.at = dict.fromkeys(two, page(5))
    parser = argparse.ArgumentParser()
    top_command.add_arguments(parser)
    addresses = (*two[:reached], *[nobody] * (2 - reached))
    flags = [flag for address in addresses for flag in ("--metrics", address)]
    assert top_command.run(parser.parse_args([*flags, "--once", "--json", "--interval", "0.01"])) == status
    (line,) = capsys.readouterr().out.splitlines()
    snapshot = json.loads(line)
    assert [replica["traffic"] is not None for replica in snapshot["replicas"]] == [
        index < reached for index in range(2)
    ]


def test_a_page_without_metrics_is_a_problem(pages: Pages, two: tuple[str, str]) -> None:
    pages.at = {two[0]: "<html>"}
    (replica,) = Replicas(two[:1], 10, lambda: 0.0).scrape(5).replicas
    assert replica.problem == "the answer holds no metrics"


def test_the_highest_value_fills_the_sparkline() -> None:
    assert sparkline([0, 1, 4, 8]) == " ▂▅█"
    assert sparkline([0, 0]) == "  "


def test_a_server_has_every_metric_that_top_reads() -> None:
    shown = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    shown |= {family.name for family in Metrics().registry.collect()}
    source = Path(traffic.__file__).read_text()
    named = set(re.findall(r'"(zfserve_[a-z_]+)"', source)) | {f"zfserve_{step}_seconds" for step in STEPS.values()}
    assert {re.sub(r"_(total|sum|count)$", "", name) for name in named} <= shown
    assert len(named) > 8
