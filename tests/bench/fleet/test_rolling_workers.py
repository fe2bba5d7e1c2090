"""The whole of it, quickly, on something tiny; what is made of the records is tested with `rolling`."""

from collections.abc import Callable
from dataclasses import replace

from zfserve_bench.fleet.rolling_workers import measure_rolling_workers
from zfserve_bench.subject import Subject
from zfserve_runtime.bundle import Bundle


def test_no_projection_fails_while_workers_are_restarted(
    network_bundle: Bundle, subject_of: Callable[[Bundle], Subject]
) -> None:
    subject = subject_of(network_bundle)
    report = measure_rolling_workers(subject, per_s=5.0)
    found = {finding.name: finding for finding in report.findings}
    assert found["calls"].measured.value > 0
    assert found["failed calls"].figure.value == 0, report.notes
    (note,) = measure_rolling_workers(replace(subject, photos=())).notes
    assert note.startswith("skipped: no photos")
