from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from zfserve_bench.compute.engines import BATCH_SIZES, Contender, Round, make_finding, measure_engines, take_rounds
from zfserve_bench.compute.graph_cost import GraphCost
from zfserve_bench.compute.peaks import Arithmetic
from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import random_images
from zfserve_bench.reports.findings import Quantity
from zfserve_runtime.bundle import AccuracyEntry, Bundle

ColourBundle = Callable[..., Bundle]
ConfigOf = Callable[[Bundle], BenchmarkConfig]

COST = GraphCost(image_flops=100, image_bytes=10, weight_bytes=1000)


class FakePeaks:
    """Records the order of its calls."""

    def __init__(self, order: list[str]) -> None:
        self.order = order

    def flops_per_s(self, arithmetic: Arithmetic, seconds: float) -> float:
        self.order.append(arithmetic)
        return 10.0

    def bytes_per_s(self, seconds: float) -> float:
        self.order.append("copy")
        return 20.0

    def close(self) -> None:
        """Frees nothing, because there is nothing to free."""


def contender(classify: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]] | None = None) -> Contender:
    classify = classify or (lambda pixels: np.zeros((len(pixels), 3), np.float32))
    return Contender("fake", "fp32", classify, 2e-7, 0.832, "fp32")


def test_a_finding_has_the_medians_of_ratios_within_a_round() -> None:
    """Ten photos need 1000 operations and 1100 bytes. In the second round, machine and engine are half as fast. In
    the third round, something disturbs only the engine."""
    rounds = [
        Round({(0, 10): 20.0}, {"fp32": 100.0}, 1100.0),
        Round({(0, 10): 40.0}, {"fp32": 50.0}, 550.0),
        Round({(0, 10): 99.0}, {"fp32": 100.0}, 1100.0),
    ]
    finding = make_finding(0, contender(), 10, COST, rounds)
    assert finding.name == "fake, fp32, batch 10"
    assert finding.measured == Quantity(10 / 40)
    assert finding.reference == Quantity(10 / 10)
    assert finding.figure.value == pytest.approx(0.5), "10 s of 20 s, and 20 s of 40 s"
    took, compute, memory, off_by, top1 = finding.details
    assert took == Quantity(40_000.0)
    assert compute == finding.figure
    assert memory is not None
    assert memory.value == pytest.approx(1 / 20)
    assert (str(off_by), str(top1)) == ("2e-07", "83.2 %")
    assert finding.limit is None


def test_an_engine_is_compared_with_the_peak_of_its_arithmetic() -> None:
    rounds = [Round({(0, 10): 20.0}, {"fp32": 100.0, "bf16": 200.0}, 1e9)]
    assert make_finding(0, replace(contender(), arithmetic="bf16"), 10, COST, rounds).figure == Quantity(
        1000 / 200 / 20
    )


def test_accuracy_that_was_not_measured_is_left_empty() -> None:
    rounds = [Round({(0, 1): 1.0}, {"fp32": 1.0}, 1.0)]
    assert make_finding(0, replace(contender(), top1=None), 1, COST, rounds).details[-1] is None


def test_every_round_measures_everything(colour_bundle: ColourBundle, config_of: ConfigOf) -> None:
    config = config_of(colour_bundle())
    config = replace(config, effort=replace(config.effort, rounds=2))
    order: list[str] = []

    def run_as(name: str) -> Contender:
        def classify(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            order.append(f"{name}{len(pixels)}")
            return np.zeros((len(pixels), 3), np.float32)

        return contender(classify)

    rounds = take_rounds(
        [run_as("a"), run_as("b")], FakePeaks(order), random_images(config.bundle.manifest.input), config
    )
    one = [f"{name}{size}" for size in BATCH_SIZES for name in "ab"] + ["fp32", "copy"]
    assert order == one * 2
    assert [set(entry.batch_s) for entry in rounds] == [{(index, size) for index in (0, 1) for size in BATCH_SIZES}] * 2
    assert rounds[0].flops_per_s == {"fp32": 10.0}
    assert rounds[0].bytes_per_s == 20.0


def test_engines_that_open_are_measured_and_the_others_are_named(
    colour_bundle: ColourBundle, config_of: ConfigOf
) -> None:
    accuracy = (AccuracyEntry(precision="fp32", count=4, top1=0.75, top5=1.0),)
    report = measure_engines(config_of(colour_bundle(accuracy=accuracy)))
    names = [f"{name}, fp32, batch {size}" for name in ("openvino", "onnx-cpu") for size in BATCH_SIZES]
    assert [finding.name for finding in report.findings][: len(names)] == names
    for finding in report.findings:
        assert finding.figure.value > 0
        *_, off_by, top1 = finding.details
        assert off_by is not None
        assert off_by.value < 1e-5
        assert top1 == Quantity(75.0, "%")
    # The CPU may lack bfloat16, and this bundle does not allow for its differences.
    assert any("openvino-bf16" in note for note in report.notes)
    assert any("tensorrt-rtx" in note for note in report.notes) or len(report.findings) > len(names)


def test_an_engine_with_other_outputs_is_not_measured(colour_bundle: ColourBundle, config_of: ConfigOf) -> None:
    """The golden outputs belong to other photos."""
    bundle = colour_bundle()
    with np.load(bundle.folder / "golden.npz") as held:
        pixels, probabilities = held["pixels"], held["probabilities_fp32"]
    with (bundle.folder / "golden.npz").open("wb") as file:
        np.savez(file, pixels=pixels, probabilities_fp32=probabilities[::-1])
    report = measure_engines(config_of(bundle))
    assert not report.findings
    assert any("Not measured: onnx-cpu, fp32: the fp32 engine" in note for note in report.notes)


def test_accuracy_is_measured_on_labelled_photos(
    colour_bundle: ColourBundle, config_of: ConfigOf, tmp_path: Path
) -> None:
    """One red photo has the label green."""
    for folder, colour in (("c-red", "red"), ("c-green", "lime"), ("c-blue", "blue"), ("c-green", "red")):
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / "data" / folder / f"{colour}.png")
    report = measure_engines(replace(config_of(colour_bundle()), data=tmp_path / "data"))
    assert {finding.details[-1] for finding in report.findings} == {Quantity(75.0, "%")}
    assert any("measured on data" in note for note in report.notes)
