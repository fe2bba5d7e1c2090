import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes.small_sources import SIZE, small_model, small_module, small_source
from zfserve_engines.contract import EngineInfo, EngineOutputs
from zfserve_export.onnx_wrap import wrap
from zfserve_export.parity import (
    ParityCheck,
    ParityError,
    Reference,
    compare,
    module_scores,
    noise_images,
    require_parity,
    run_all,
    source_scores,
)
from zfserve_export.photos import input_spec
from zfserve_export.sources.source import Source
from zfserve_model.importing.importer import import_graph
from zfserve_model.preprocessing import Preprocessing
from zfserve_runtime.bundle import InputSpec, Precision

SPEC = InputSpec(height=4, width=6, resize="squash", shorter_side=256, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def outputs(probabilities: list[list[float]], features: list[list[float]]) -> EngineOutputs:
    return EngineOutputs(np.array(probabilities, np.float32), np.array(features, np.float32))


EXPECTED = outputs([[0.9, 0.1], [0.4, 0.6]], [[0.0, 8.0], [2.0, 0.0]])
REFERENCE = Reference("photos", np.zeros((2, 4, 6, 3), np.uint8), EXPECTED)


class MeanColour:
    """An engine that answers with the mean red value and its complement, for at most three photos at a time."""

    info = EngineInfo("fake", "fake", "fp32", max_batch_size=3, threads=1)

    def run(self, pixels: np.ndarray) -> EngineOutputs:
        assert 1 <= len(pixels) <= 3
        red = pixels[..., :1].mean(axis=(1, 2), dtype=np.float32) / 255
        return EngineOutputs(np.concatenate([red, 1 - red], axis=1), red)

    def close(self) -> None:
        pass


def test_figures_are_the_largest_difference_and_the_share_of_equal_classes() -> None:
    actual = outputs([[0.875, 0.125], [0.5625, 0.4375]], [[0.0, 8.0], [2.0, 0.0]])
    entry = compare("int8", REFERENCE, actual)
    assert (entry.precision, entry.inputs, entry.count, entry.top1_agreement) == ("int8", "photos", 2, 0.5)
    assert entry.max_difference == pytest.approx(0.1625)


@pytest.mark.parametrize(
    ("actual", "complaint"),
    [
        (outputs([[0.9, 0.1], [0.41, 0.59]], [[0.0, 8.0], [2.0, 0.0]]), r"probability differs .* by 0\.01 on 2 photos"),
        (outputs([[0.9, 0.1], [0.4, 0.6]], [[0.0, 8.0], [2.08, 0.0]]), r"feature differs .* by 0\.01 on 2 photos"),
        (outputs([[0.9, 0.1], [0.4, np.nan]], [[0.0, 8.0], [2.0, 0.0]]), "probability differs .* by nan"),
    ],
)
def test_past_the_tolerance_is_an_error_that_says_by_how_much(actual: EngineOutputs, complaint: str) -> None:
    with pytest.raises(ParityError, match=complaint):
        require_parity("fp32", REFERENCE, actual, tolerance=0.005)


def test_within_the_tolerance_passes() -> None:
    actual = outputs([[0.91, 0.09], [0.4, 0.6]], [[0.0, 8.0], [2.08, 0.0]])
    require_parity("fp32", REFERENCE, actual, tolerance=0.02)


def test_the_error_says_how_to_export_nevertheless() -> None:
    actual = outputs([[0.91, 0.09], [0.4, 0.6]], [[0.0, 8.0], [2.0, 0.0]])
    remedies: dict[Precision, str] = {"fp32": "allow more with --tolerance", "fp16": "leave it out with --no-fp16"}
    for precision, remedy in remedies.items():
        with pytest.raises(ParityError, match=rf"the {precision} graph's .* allowed \({remedy}\)"):
            require_parity(precision, REFERENCE, actual, tolerance=0.005)


def test_noise_is_the_same_at_every_call() -> None:
    noise = noise_images(SPEC, 3)
    assert noise.shape == (3, 4, 6, 3)
    assert noise.dtype == np.uint8
    np.testing.assert_array_equal(noise, noise_images(SPEC, 3))
    assert noise.min() < 20
    assert noise.max() > 235


def test_runs_any_number_in_batches_that_the_engine_takes() -> None:
    pixels = noise_images(SPEC, 7)
    expected = pixels[..., 0].mean(axis=(1, 2)) / 255
    np.testing.assert_allclose(run_all(MeanColour(), pixels).probabilities[:, 0], expected, rtol=1e-5)


def test_module_and_file_get_normalised_images(source: Source) -> None:
    """One grey photo is normalised by hand."""
    grey = np.full((1, SIZE, SIZE, 3), 128, np.uint8)
    by_hand = [(128 / 255 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    module = small_module()
    expected = module(torch.tensor(by_hand).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)).numpy()
    np.testing.assert_allclose(module_scores(module, grey, source.preprocessing), expected, atol=1e-5)
    np.testing.assert_allclose(source_scores(small_source(module=None), grey), expected, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_file_with_a_fixed_batch_gives_the_scores_of_every_image(batch: int, source: Source) -> None:
    pixels = noise_images(input_spec(source.preprocessing), 3)
    fixed = small_source(model=small_model(small_module(), batch), module=None, fixed_batch=batch)
    np.testing.assert_allclose(source_scores(fixed, pixels), source_scores(source, pixels), atol=1e-5)


def check_of(source: Source, tolerance: float = 1e-4) -> ParityCheck:
    wrapped = wrap(source)
    return ParityCheck(source, wrapped, import_graph(wrapped.model), tolerance)


def test_a_reference_has_the_probabilities_of_the_source_and_the_features_of_the_graph(source: Source) -> None:
    pixels = noise_images(input_spec(source.preprocessing), 2)
    expected = check_of(source).make_reference("noise", pixels).expected
    assert (expected.probabilities.shape, expected.features.shape) == ((2, 3), (2, 16))
    np.testing.assert_allclose(expected.probabilities.sum(axis=1), 1, atol=1e-6)


def test_a_graph_that_differs_from_its_module_is_an_error() -> None:
    check = check_of(small_source(module=small_module(seed=4)))
    with pytest.raises(ParityError, match=r"a logit that ONNX Runtime computes differs .* on 2 images, and 0\.0001 is"):
        check.make_reference("noise", noise_images(input_spec(check.source.preprocessing), 2))


def test_a_graph_that_the_worker_reads_as_another_is_an_error(source: Source) -> None:
    check = check_of(source)
    other = import_graph(wrap(small_source(model=small_model(small_module(seed=4)))).model)
    check = ParityCheck(source, check.wrapped, other, 1e-4)
    with pytest.raises(ParityError, match=r"a logit that the worker's PyTorch computes differs"):
        check.make_reference("noise", noise_images(input_spec(source.preprocessing), 2))


def test_an_import_may_have_no_features(source: Source) -> None:
    check = check_of(source)
    check = replace(check, graph=replace(check.graph, features=None))
    check.make_reference("noise", noise_images(input_spec(source.preprocessing), 2))


def test_a_difference_that_is_no_rounding_needs_another_file(source: Source) -> None:
    check = check_of(small_source(module=small_module(seed=4)))
    with pytest.raises(ParityError, match=r"the file computes something else .* in evaluation mode"):
        check.make_reference("noise", noise_images(input_spec(check.source.preprocessing), 2))


def test_a_network_that_magnifies_rounding_is_told_a_tolerance_that_is_enough(source: Source) -> None:
    pixels = noise_images(input_spec(source.preprocessing), 2)
    with pytest.raises(ParityError, match=r"this network magnifies rounding") as refused:
        check_of(source, tolerance=1e-12).make_reference("noise", pixels)
    told = re.search(r"--tolerance (\S+);", str(refused.value))
    assert told
    check_of(source, tolerance=float(told[1])).make_reference("noise", pixels)


def test_wrong_normalisation_shows(source: Source) -> None:
    """The source normalises apart from the graph, so a graph with another mean differs."""
    wrapped = wrap(small_source(preprocessing=Preprocessing(height=SIZE, width=SIZE, mean=(0.5, 0.5, 0.5))))
    check = ParityCheck(source, wrapped, import_graph(wrapped.model), 1e-4)
    with pytest.raises(ParityError, match="a logit that ONNX Runtime computes differs"):
        check.make_reference("noise", noise_images(input_spec(source.preprocessing), 2))
