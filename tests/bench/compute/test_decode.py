from collections.abc import Callable
from dataclasses import replace

from zfserve_bench.compute.decode import measure_decode
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.reports.findings import Report
from zfserve_runtime.bundle import Bundle

ColourBundle = Callable[..., Bundle]
ConfigOf = Callable[[Bundle], BenchmarkConfig]
Figures = Callable[[Report], dict[str, float]]


def test_decode(colour_bundle: ColourBundle, config_of: ConfigOf, figures: Figures) -> None:
    config = config_of(colour_bundle())
    assert list(figures(measure_decode(config))) == ["decode and resize"]
    skipped = measure_decode(replace(config, photos=()))
    assert not skipped.findings
    assert skipped.notes[0].startswith("skipped: no photos")
