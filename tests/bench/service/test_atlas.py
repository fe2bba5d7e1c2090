from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.cells_network import write_cells_bundle
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.service.atlas import measure_atlas
from zfserve_runtime.bundle import Bundle, load_bundle

ConfigOf = Callable[[Bundle], BenchmarkConfig]


@pytest.mark.usefixtures("_no_processes_left")
def test_atlas(tmp_path: Path, config_of: ConfigOf) -> None:
    (finding,) = measure_atlas(config_of(load_bundle(write_cells_bundle(tmp_path)))).findings
    assert finding.limit is None
    assert finding.measured.value > 0
