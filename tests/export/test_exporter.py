import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from zfserve_engines.contract import EngineOutputs
from zfserve_engines.golden import EngineDisagrees, load_golden, verify_engine
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_export.exporter import INT8_PRECISIONS, ExportPlan, export_bundle, sample_evenly, smallest_exact_dtype
from zfserve_export.measurement import MeasurementInputs, measure
from zfserve_export.parity import ParityError, make_reference, noise_images
from zfserve_export.photos import list_photos
from zfserve_model.checkpoint import Checkpoint, load_checkpoint, weights_fingerprint
from zfserve_runtime.bundle import Bundle, BundleError, Precision, load_bundle

PRECISIONS = get_args(Precision)


def test_a_bundle_holds_what_the_design_says(bundle: Bundle) -> None:
    assert sorted(file.name for file in bundle.folder.iterdir()) == [
        "golden.npz",
        "manifest.json",
        "model.fp16.onnx",
        "model.int8-symmetric.onnx",
        "model.int8.onnx",
        "model.onnx",
        "weights.safetensors",
    ]
    assert bundle.folder.parts[-2:] == ("tiny", "1")
    assert set(bundle.manifest.files) == {entry.name for entry in bundle.folder.iterdir()} - {"manifest.json"}


def test_the_manifest_describes_the_network(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.architecture) == ("tiny", "1", "zfnet-fig3")
    assert (manifest.schema_version, manifest.feature_width) == (2, 16)
    assert [(entry.class_id, entry.label) for entry in manifest.classes] == [
        ("n01", "one"),
        ("n02", "two"),
        ("n03", "three"),
    ]
    assert (manifest.input.height, manifest.input.width, manifest.input.resize) == (224, 224, "squash")
    assert [layer.name for layer in manifest.layers][:4] == ["conv1", "relu1", "pool1", "conv2"]
    last = manifest.layer("pool5")
    assert last is not None
    assert (last.channels, last.height, last.width) == (256, 6, 6)


def test_the_worker_finds_the_same_weights(bundle: Bundle, checkpoint: Checkpoint) -> None:
    held = load_checkpoint(bundle.folder / "weights.safetensors")
    assert weights_fingerprint(held.network) == bundle.manifest.fingerprint == weights_fingerprint(checkpoint.network)


def test_parity_is_reported_for_each_file_on_photos_and_on_noise(bundle: Bundle) -> None:
    entries = {(entry.precision, entry.inputs): entry for entry in bundle.manifest.parity}
    assert {key: entry.count for key, entry in entries.items()} == {
        (precision, inputs): count for precision in PRECISIONS for inputs, count in (("photos", 12), ("noise", 8))
    }
    for inputs in ("photos", "noise"):
        assert entries["fp32", inputs].max_difference < 1e-5
        assert entries["fp32", inputs].top1_agreement == 1
        assert 1e-5 < entries["fp16", inputs].max_difference < 1e-2
    for precision in INT8_PRECISIONS:
        assert 1e-5 < entries[precision, "photos"].max_difference < 0.2


def test_accuracy_is_reported_for_each_file(bundle: Bundle) -> None:
    assert [(entry.precision, entry.count) for entry in bundle.manifest.accuracy] == [
        (precision, 12) for precision in PRECISIONS
    ]
    for entry in bundle.manifest.accuracy:
        assert 0 <= entry.top1 <= entry.top5 == 1, "three classes: the true one is always among five"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_engines_reproduce_the_golden_outputs(bundle: Bundle, precision: Precision) -> None:
    engine = OnnxEngine(bundle, precision, threads=1, max_batch_size=4)
    assert load_golden(bundle).pixels.shape == (8, 224, 224, 3)
    verify_engine(engine, bundle)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_tolerance_is_too_narrow_for_a_broken_engine(bundle: Bundle, precision: Precision) -> None:
    """The engine swaps red and blue, a common mistake that is hard to see."""

    class Swapped(OnnxEngine):
        def run(self, pixels: NDArray[np.uint8]) -> EngineOutputs:
            return super().run(np.ascontiguousarray(pixels[..., ::-1]))

    with pytest.raises(EngineDisagrees):
        verify_engine(Swapped(bundle, precision, threads=1, max_batch_size=4), bundle)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_graphs_are_held_to_their_tolerance(bundle: Bundle, checkpoint: Checkpoint, precision: Precision) -> None:
    noise = make_reference(checkpoint, "noise", noise_images(bundle.manifest.input, 2))
    inputs = MeasurementInputs([noise], {precision: 1e-12}, noise.pixels, validation=None)
    with pytest.raises(ParityError, match=f"the {precision} graph's probability differs"):
        measure(bundle, precision, inputs, on_photos=lambda count: None)


def test_a_corrupt_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.folder, tmp_path / "1")
    assert load_bundle(copy).manifest == bundle.manifest
    with (copy / "model.onnx").open("r+b") as opened:
        opened.seek(1_000_000)
        opened.write(b"\x00\x01\x02\x03")
    with pytest.raises(BundleError, match=r"model\.onnx .* differs from its digest"):
        load_bundle(copy)


def test_past_the_tolerance_no_bundle_is_left(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plan = ExportPlan(models=tmp_path / "models", name="tiny", tolerance=1e-12, fp16=False)
    with pytest.raises(ParityError, match=r"1e-12 is allowed \(allow more with --tolerance\); no bundle was written"):
        export_bundle(checkpoint, plan)
    assert list(tmp_path.iterdir()) == []


def test_a_network_beyond_half_is_exported_without_it_only(fresh_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One layer is scaled up and the next one down, so that float16 cannot hold the activations between them."""
    with torch.no_grad():
        fresh_checkpoint.network.get_parameter("trunk.conv4.weight").mul_(2**16)
        fresh_checkpoint.network.get_parameter("trunk.conv5.weight").mul_(2**-16)
    with pytest.raises(ParityError, match="conv4 gives activations of"):
        export_bundle(fresh_checkpoint, ExportPlan(models=tmp_path / "models", name="tiny"))
    assert list(tmp_path.iterdir()) == []
    bundle = export_bundle(fresh_checkpoint, ExportPlan(models=tmp_path / "models", name="tiny", fp16=False))
    assert list(bundle.manifest.artefacts) == ["fp32"]


def test_an_interrupt_leaves_the_older_version_alone(
    bundle: Bundle, checkpoint: Checkpoint, photo_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle.folder, tmp_path / "tiny" / "1")
    steps = []

    def interrupt(step: str, advance: int, total: int) -> None:
        steps.append(step)
        if step == "INT8 calibration":
            raise KeyboardInterrupt

    plan = ExportPlan(models=tmp_path, name="tiny", fp16=False, calibration=list_photos(photo_folder))
    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, plan, interrupt)
    assert steps[-1] == "INT8 calibration"
    assert [entry.name for entry in (tmp_path / "tiny").iterdir()] == ["1"]
    assert load_bundle(tmp_path / "tiny").manifest == bundle.manifest


@pytest.mark.parametrize(("name", "version"), [("../up", None), ("tiny", ".hidden"), ("", "1")])
def test_names_that_are_no_folders_are_refused(name: str, version: str | None, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be a folder's name"):
        ExportPlan(models=tmp_path, name=name, version=version)


def test_weights_are_stored_in_half_only_where_nothing_is_lost(fresh_checkpoint: Checkpoint) -> None:
    network = fresh_checkpoint.network
    assert smallest_exact_dtype(network) == torch.float16
    with torch.no_grad():
        network.get_parameter("head.fc8.bias")[0] = 1 + 2**-20
    assert smallest_exact_dtype(network) == torch.float32


def test_thinning_out_spreads_evenly() -> None:
    photos = tuple(Path(str(index)) for index in range(10))
    assert [path.name for path in sample_evenly(photos, 4)] == ["0", "2", "5", "7"]
    assert sample_evenly(photos, 10) == photos
