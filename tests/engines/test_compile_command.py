"""Tests `zfserve compile` with TensorRT for RTX, and every way in which it ends without an engine."""

import argparse
import importlib.util
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ColourBundle
from zfserve_engines.compile_command import add_arguments, run
from zfserve_engines.store.store import EngineStore
from zfserve_engines.tensorrt.library import load_library
from zfserve_runtime.bundle import Artefact, Bundle

TENSORRT_LOG = "zfserve_engines.tensorrt.library"


def compile_bundle(bundle: Bundle, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(bundle.folder), "--batches", "1,4", *arguments]))


@pytest.fixture(autouse=True)
def _wide_console_and_logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "300")
    root, ours = logging.getLogger(), logging.getLogger(TENSORRT_LOG)
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def bundle(colour_bundle: ColourBundle) -> Bundle:
    return colour_bundle()


def stored(bundle: Bundle) -> list[Path]:
    folder = bundle.folder / "engines"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_compiles_once_and_says_what_was_built(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_bundle(bundle, "--compute-capability", "8.6, 8.9", "--workspace", "256M", "--tf32") == 0
    (entry,) = EngineStore.of(bundle).entries()
    assert entry.record is not None
    chosen = entry.record.identity.settings
    assert (chosen.library, chosen.precision, chosen.batches) == ("tensorrt-rtx", "fp32", (1, 4))
    assert (chosen.compute_capabilities, chosen.workspace_bytes, chosen.tf32) == (("8.6", "8.9"), 256 << 20, True)
    said = capsys.readouterr()
    assert said.err.strip() == ""
    lines = [line.split() for line in said.out.splitlines() if line.strip()]
    assert " ".join(lines[0]) == f"colours 1, fp32, {load_library('tensorrt-rtx')}"
    for line in (
        "softmax float32 1",
        "input pixels, uint8 (N, 8, 8, 3)",
        "output probabilities, float32 (N, 3)",
        "batches 1, 2 to 4",
        "for 8.6, 8.9",
        f"engine {entry.file}",
    ):
        assert line.split() in lines
    assert [" ".join(line[1:2] + line[3:4]) for line in lines if line[0] == "built"] == ["in s,"]

    assert compile_bundle(bundle, "--compute-capability", "8.6,8.9", "--workspace", "256MiB", "--tf32") == 0
    assert "verified now, and nothing was built" in capsys.readouterr().out
    assert len(stored(bundle)) == 2, "the plan and its record"


def test_without_a_gpu_it_compiles_for_all_gpus_from_ampere_on(bundle: Bundle, tmp_path: Path) -> None:
    from zfserve_engines.cuda.gpu import detect_gpu

    assert compile_bundle(bundle, "--engine-cache", str(tmp_path / "shared")) == 0
    (entry,) = EngineStore(tmp_path / "shared").entries()
    assert entry.record is not None
    gpu = detect_gpu()
    expected = (gpu.compute_capability,) if gpu else load_library("tensorrt-rtx").default_targets
    assert set(entry.record.identity.settings.compute_capabilities) == set(expected)
    assert stored(bundle) == []


def test_int8_compiles_the_symmetric_graph(colour_bundle: ColourBundle) -> None:
    artefacts = {name: Artefact(file="model.onnx", golden_tolerance=1) for name in ("fp32", "int8", "int8-symmetric")}
    bundle = colour_bundle(artefacts=artefacts)
    assert compile_bundle(bundle, "--precision", "int8", "--compute-capability", "8.9") == 0
    (entry,) = EngineStore.of(bundle).entries()
    assert entry.record is not None
    assert entry.record.identity.settings.precision == "int8-symmetric"


@pytest.mark.parametrize(
    ("precision", "command"),
    [("fp16", "zfserve export WEIGHTS --fp16"), ("int8", "zfserve export WEIGHTS --int8 --calibration PHOTOS")],
)
def test_a_bundle_without_the_precision_says_how_to_export_it(
    bundle: Bundle, precision: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_bundle(bundle, "--precision", precision) == 2
    assert capsys.readouterr().err.strip() == (
        f"error: {bundle.folder} holds no graph for {precision} engines, only fp32; "
        f"export it again with that graph: {command}"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--compute-capability", "9.0"), "cannot build for compute capability 9.0, only for 7.5, 8.0, "),
        (("--batches", "8,1"), "batches must be different, ascending and at least 1, not (8, 1)"),
        (("--optimization-level", "6"), "the optimisation level must be 0 to 5, not 6"),
        (("--compute-capability", "8.9", "--workspace", "1"), "with a workspace of 1 bytes; allow more with --wor"),
    ],
)
def test_settings_that_cannot_be_built(
    bundle: Bundle, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_bundle(bundle, *arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert sentence in said
    assert "\n" not in said, "TensorRT's log is not repeated"
    assert stored(bundle) == []


@pytest.mark.parametrize("arguments", [("--workspace", "1.5X"), ("--workspace", "-1"), ("--batches", "1,,8")])
def test_invalid_arguments(bundle: Bundle, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        compile_bundle(bundle, *arguments)
    assert refused.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_folder_that_is_not_a_bundle(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle.folder / "manifest.json").unlink()
    assert compile_bundle(bundle) == 2
    assert "there is no bundle at" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_a_library_that_is_not_installed(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_bundle(bundle, "--runtime", "tensorrt") == 4
    assert capsys.readouterr().err.startswith(
        "error: TensorRT is not installed; in a checkout of zfserve: pip install "
    )


class _SignalSender(logging.Handler):
    """Sends a signal to this process during the build: when TensorRT logs its first message."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self._number = number
        self._sent = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._sent:
            self._sent = True
            os.kill(os.getpid(), self._number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(
    bundle: Bundle, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    sender = _SignalSender(number)
    logging.getLogger(TENSORRT_LOG).addHandler(sender)
    try:
        if number == signal.SIGINT:
            assert compile_bundle(bundle, "--compute-capability", "8.9", "--verbose") == 130
            assert "interrupted; no engine was written" in capsys.readouterr().err
        else:
            with pytest.raises(SystemExit) as stopped:
                compile_bundle(bundle, "--compute-capability", "8.9", "--verbose")
            assert stopped.value.code == 128 + signal.SIGTERM
    finally:
        logging.getLogger(TENSORRT_LOG).removeHandler(sender)
    assert stored(bundle) == []
    assert compile_bundle(bundle, "--compute-capability", "8.9") == 0
