from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from zfserve_engines.contract import EngineInfo, EngineOutputs
from zfserve_engines.golden import EngineDisagrees, Golden, load_golden, verify_engine, write_golden
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_runtime.bundle import Artefact, Bundle, BundleError

ColourBundle = Callable[..., Bundle]


class SpoilingEngine:
    """Returns the golden outputs, after `spoil` has changed the probabilities of the batch."""

    def __init__(
        self, bundle: Bundle, spoil: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]], max_batch_size: int
    ) -> None:
        self.info = EngineInfo("spoiled", "none", "fp32", max_batch_size, 1)
        self.batch_sizes: list[int] = []
        self._golden = load_golden(bundle)
        self._spoil = spoil

    def run(self, pixels: npt.NDArray[np.uint8]) -> EngineOutputs:
        self.batch_sizes.append(len(pixels))
        same = (pixels[:, None] == self._golden.pixels[None]).all(axis=(2, 3, 4))
        probabilities = self._golden.probabilities["fp32"][same.argmax(axis=1)].copy()
        return EngineOutputs(self._spoil(probabilities), np.zeros((len(pixels), 3), np.float32))

    def close(self) -> None:
        pass


@pytest.mark.parametrize("max_batch_size", [1, 2, 3, 8])
def test_an_engine_that_agrees_passes(colour_bundle: ColourBundle, max_batch_size: int) -> None:
    bundle = colour_bundle()
    verify_engine(OnnxEngine(bundle, "fp32", threads=1, max_batch_size=max_batch_size), bundle)


@pytest.mark.parametrize(
    ("max_batch_size", "sizes"), [(1, [1, 1, 1]), (2, [1, 1, 1, 2, 1]), (3, [1, 1, 1, 3]), (8, [1, 1, 1, 3])]
)
def test_rows_are_run_alone_and_together(colour_bundle: ColourBundle, max_batch_size: int, sizes: list[int]) -> None:
    bundle = colour_bundle()
    engine = SpoilingEngine(bundle, lambda probabilities: probabilities, max_batch_size)
    verify_engine(engine, bundle)
    assert engine.batch_sizes == sizes


def test_the_error_gives_the_difference_and_the_tolerance(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle()
    engine = SpoilingEngine(bundle, lambda probabilities: probabilities + np.float32(0.25), 4)
    with pytest.raises(EngineDisagrees, match=r"by 0\.25 at batch size 1, and 1e-05 is allowed"):
        verify_engine(engine, bundle)


def test_rows_mixed_up_in_a_batch_are_found(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle()
    with pytest.raises(EngineDisagrees, match="at batch size 3"):
        verify_engine(SpoilingEngine(bundle, lambda probabilities: probabilities[::-1], 4), bundle)


def test_bfloat16_needs_its_own_tolerance(colour_bundle: ColourBundle) -> None:
    def coarse(bundle: Bundle) -> SpoilingEngine:
        engine = SpoilingEngine(bundle, lambda probabilities: probabilities + np.float32(0.01), 4)
        engine.info = replace(engine.info, bf16=True)
        return engine

    silent = colour_bundle()
    with pytest.raises(BundleError, match="has no tolerance for its fp32 graph in bf16"):
        verify_engine(coarse(silent), silent)
    for tolerance, agrees in ((0.02, True), (0.005, False)):
        artefact = Artefact(file="model.onnx", golden_tolerance=1e-5, bf16_tolerance=tolerance)
        bundle = colour_bundle(f"bundle {tolerance}", artefacts={"fp32": artefact})
        with nullcontext() if agrees else pytest.raises(EngineDisagrees, match=r"and 0\.005 is allowed"):
            verify_engine(coarse(bundle), bundle)


def test_nan_is_found(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle()
    with pytest.raises(EngineDisagrees, match="by nan"):
        verify_engine(SpoilingEngine(bundle, lambda probabilities: probabilities * np.float32("nan"), 4), bundle)


def test_another_shape_is_found(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle()
    with pytest.raises(EngineDisagrees, match=r"answers \(1, 2\) where \(1, 3\)"):
        verify_engine(SpoilingEngine(bundle, lambda probabilities: probabilities[:, :2], 4), bundle)


def test_golden_inputs_survive_a_round_trip(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle(
        artefacts={name: Artefact(file="model.onnx", golden_tolerance=0.1) for name in ("fp32", "int8")}
    )
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    golden = Golden(pixels, {"fp32": np.full((2, 3), 0.5, np.float32), "int8": np.full((2, 3), 0.25, np.float32)})
    file = write_golden(golden, bundle.folder)
    first = file.read_bytes()
    found = load_golden(bundle)
    assert (found.pixels == pixels).all()
    assert {name: float(values[0, 0]) for name, values in found.probabilities.items()} == {"fp32": 0.5, "int8": 0.25}
    write_golden(found, bundle.folder)
    assert file.read_bytes() == first


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x80\x04K*."])
def test_a_damaged_file_is_refused(colour_bundle: ColourBundle, content: bytes) -> None:
    bundle = colour_bundle()
    (bundle.folder / "golden.npz").write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read"):
        load_golden(bundle)


def test_a_pickle_is_never_opened(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle()
    pickled = np.array([{"a": 1}], dtype=object)
    np.savez(bundle.folder / "golden.npz", pixels=pickled, probabilities_fp32=pickled)
    with pytest.raises(BundleError, match="cannot be read"):
        load_golden(bundle)


def test_golden_inputs_of_another_network_are_refused(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle()
    for pixels, classes in (((2, 9, 8, 3), 3), ((2, 8, 8, 3), 4), ((0, 8, 8, 3), 3)):
        probabilities = np.zeros((pixels[0], classes), np.float32)
        write_golden(Golden(np.zeros(pixels, np.uint8), {"fp32": probabilities}), bundle.folder)
        with pytest.raises(BundleError, match="does not fit"):
            load_golden(bundle)


def test_a_precision_that_was_not_recorded_is_an_error(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle(artefacts={"int8": Artefact(file="model.onnx", golden_tolerance=0.1)})
    with pytest.raises(BundleError, match="incomplete"):
        load_golden(bundle)
