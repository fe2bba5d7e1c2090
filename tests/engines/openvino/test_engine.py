import logging
import sys
from collections.abc import Callable

import numpy as np
import pytest
from fakes.bf16 import HAS_BF16, needs_bf16
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.golden import verify_engine
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_engines.openvino.engine import OpenVinoEngine
from zfserve_runtime.bundle import Artefact, Bundle, BundleError
from zfserve_runtime.errors import EngineFailed

ColourBundle = Callable[..., Bundle]


def open_engine(bundle: Bundle) -> OpenVinoEngine:
    return OpenVinoEngine(bundle, "fp32", threads=1, max_batch_size=4)


def test_the_outputs_are_those_of_onnx_runtime(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle()
    engine, reference = open_engine(bundle), OnnxEngine(bundle, "fp32", threads=1, max_batch_size=4)
    verify_engine(engine, bundle)
    pixels = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for count in (1, 3, 4, 2):
        outputs, expected = engine.run(pixels[:count]), reference.run(pixels[:count])
        np.testing.assert_allclose(outputs.probabilities, expected.probabilities, atol=1e-6)
        np.testing.assert_allclose(outputs.features, expected.features, rtol=1e-6)
        assert outputs.probabilities.dtype == outputs.features.dtype == np.float32


def test_outputs_outlive_the_next_batch(colour_bundle: ColourBundle) -> None:
    engine = open_engine(colour_bundle())
    black = engine.run(np.zeros((2, 8, 8, 3), np.uint8))
    white = engine.run(np.full((2, 8, 8, 3), 255, np.uint8))
    assert not black.features.any()
    assert (white.features == 255).all()


def test_rows_that_are_not_contiguous_can_be_run(colour_bundle: ColourBundle) -> None:
    """OpenVINO reads the pixels in place. So it must also read arrays whose rows are not contiguous."""
    engine = open_engine(colour_bundle())
    pixels = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), np.uint8)
    every_other = engine.run(pixels[::2])
    np.testing.assert_array_equal(every_other.features, engine.run(pixels[::2].copy()).features)


def test_info_describes_the_engine(colour_bundle: ColourBundle) -> None:
    info = open_engine(colour_bundle()).info
    assert (info.runtime, info.provider, info.precision) == ("openvino", "CPU f32", "fp32")
    assert (info.max_batch_size, info.threads, info.device) == (4, 1, "CPU")


def test_warms_up_from_the_largest_batch_down(colour_bundle: ColourBundle) -> None:
    heard: list[tuple[int, int]] = []
    OpenVinoEngine(colour_bundle(), "fp32", threads=1, max_batch_size=16, on_warming=lambda *step: heard.append(step))
    assert heard == [(0, 3), (1, 3), (2, 3)], "16, 8 and 1"


def test_without_openvino_the_extra_is_named(colour_bundle: ColourBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineUnavailable, match=r"OpenVINO is not installed; .* '\.\[openvino\]'"):
        open_engine(colour_bundle())


@pytest.mark.skipif(HAS_BF16, reason="this CPU has bf16")
def test_bf16_is_refused_where_the_cpu_has_none(colour_bundle: ColourBundle) -> None:
    with pytest.raises(EngineUnavailable, match="no bf16"):
        OpenVinoEngine(colour_bundle(), "fp32", threads=1, max_batch_size=1, arithmetic="bf16")


@needs_bf16
def test_info_says_that_bf16_runs(colour_bundle: ColourBundle) -> None:
    engine = OpenVinoEngine(colour_bundle(), "fp32", threads=1, max_batch_size=1, arithmetic="bf16")
    assert (engine.info.provider, engine.info.bf16, open_engine(colour_bundle("other")).info.bf16) == (
        "CPU bf16",
        True,
        False,
    )


def test_a_file_that_is_not_a_graph(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle()
    (bundle.folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"OpenVINO .* cannot load model\.onnx") as caught:
        open_engine(bundle)
    assert caught.value.__cause__ is not None


def test_an_artefact_without_its_file(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle(artefacts={"fp32": Artefact(file="lost.onnx", golden_tolerance=1e-5)})
    with pytest.raises(BundleError, match=r"cannot load lost\.onnx"):
        open_engine(bundle)


def test_a_width_that_differs_from_the_manifest(colour_bundle: ColourBundle) -> None:
    with pytest.raises(BundleError, match=r"'features' has shape \(4, 3\) for 4 photos .* \(4, 4\)"):
        open_engine(colour_bundle(feature_width=4))


def test_a_closed_engine_does_not_run(colour_bundle: ColourBundle, caplog: pytest.LogCaptureFixture) -> None:
    engine = open_engine(colour_bundle())
    engine.close()
    with caplog.at_level(logging.ERROR), pytest.raises(EngineFailed, match="failed on this batch"):
        engine.run(np.zeros((1, 8, 8, 3), np.uint8))
    assert "batch of 1" in caplog.text
