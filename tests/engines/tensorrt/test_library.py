"""Tests loading both libraries: TensorRT for RTX as installed, and TensorRT missing or broken."""

import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.tensorrt.library import load_library


@pytest.fixture
def _no_tensorrt_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the state before the first import of TensorRT."""
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    yield
    sys.modules.pop("tensorrt", None)


def test_loads_tensorrt_for_rtx_once() -> None:
    library = load_library("tensorrt-rtx")
    assert library is load_library("tensorrt-rtx")
    assert str(library) == f"TensorRT for RTX {library.module.__version__}"
    assert library.logger is not None


def test_targets_are_those_of_the_library() -> None:
    library = load_library("tensorrt-rtx")
    assert {"7.5", "8.0", "8.6", "8.9", "12.0"} <= set(library.targets)
    assert max(target for target in library.targets if target.startswith("8")) == "8.9"
    assert library.targets[-1].startswith("12."), "ascending as numbers, not as text"
    assert library.default_targets == library.targets[1:], "all but Turing"


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_a_library_that_is_not_installed() -> None:
    with pytest.raises(EngineUnavailable) as refused:
        load_library("tensorrt")
    assert str(refused.value) == (
        "TensorRT is not installed; in a checkout of zfserve: pip install --extra-index-url https://pypi.nvidia.com "
        "-c constraints.txt -e '.[tensorrt]'"
    )


@pytest.mark.usefixtures("_no_tensorrt_yet")
@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError"])
def test_a_library_that_cannot_be_loaded(error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text(f"raise {error}('libnvinfer.so.11 is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineUnavailable, match=r"TensorRT is installed but cannot be loaded: libnvinfer\.so\.11 is"):
        load_library("tensorrt")


def test_messages_pass_on_to_logging_by_their_severity(caplog: pytest.LogCaptureFixture) -> None:
    library = load_library("tensorrt-rtx")
    severity = library.module.ILogger.Severity
    with caplog.at_level(logging.DEBUG, "zfserve_engines.tensorrt.library"):
        for level in (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING, severity.INFO, severity.VERBOSE):
            library.logger.log(level, f"100 % {level.name}")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "100 % INTERNAL_ERROR"),
        ("ERROR", "100 % ERROR"),
        ("WARNING", "100 % WARNING"),
        ("DEBUG", "100 % INFO"),
    ]


def test_a_build_collects_the_errors_of_its_own_thread() -> None:
    """A failure of one build must not show the errors of another build in the same process."""
    library = load_library("tensorrt-rtx")
    severity = library.module.ILogger.Severity
    with library.logger.collect_errors() as errors:
        library.logger.log(severity.WARNING, "a warning")
        library.logger.log(severity.ERROR, "mine")
        other = threading.Thread(target=library.logger.log, args=(severity.ERROR, "another's"))
        other.start()
        other.join()
    library.logger.log(severity.ERROR, "too late")
    assert errors == ["mine"]
