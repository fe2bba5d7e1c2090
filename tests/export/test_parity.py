import numpy as np
import pytest
import torch
from zfserve_engines.contract import EngineInfo, EngineOutputs
from zfserve_export.parity import (
    ParityError,
    Reference,
    compare,
    network_outputs,
    noise_images,
    require_half_range,
    require_parity,
    run_all,
)
from zfserve_export.photos import input_spec
from zfserve_model.checkpoint import Checkpoint
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


@pytest.mark.parametrize(
    ("layer", "factor", "found"), [("conv4", 1e5, "conv4"), ("conv4", float("nan"), "conv4"), ("fc7", 1e7, "fc7")]
)
def test_activations_too_large_for_half_are_found(
    fresh_checkpoint: Checkpoint, layer: str, factor: float, found: str
) -> None:
    """ONNX Runtime's CPU kernels would hide the overflow, because the next layer scales the activations down again."""
    noise = Reference("noise", noise_images(input_spec(fresh_checkpoint.preprocessing), 2), EXPECTED)
    require_half_range(fresh_checkpoint, noise)
    with torch.no_grad():
        for name, tensor in fresh_checkpoint.network.named_parameters():
            if f".{layer}." in name:
                tensor.mul_(factor)
    with pytest.raises(ParityError, match=rf"{found} gives activations of .* for noise.*--no-fp16"):
        require_half_range(fresh_checkpoint, noise)


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


def test_network_gets_normalised_rgb(checkpoint: Checkpoint) -> None:
    """One grey photo is normalised by hand."""
    grey = np.full((1, 224, 224, 3), 128, np.uint8)
    by_hand = [(128 / 255 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    with torch.inference_mode():
        logits = checkpoint.network(torch.tensor(by_hand).view(1, 3, 1, 1).expand(1, 3, 224, 224))
    found = network_outputs(checkpoint, grey)
    np.testing.assert_allclose(found.probabilities, logits.softmax(1).numpy(), atol=1e-6)
    assert found.features.shape == (1, 16)
