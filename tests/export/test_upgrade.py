import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from zfserve_engines.golden import load_golden, verify_engine
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_export.upgrade import upgrade_bundle
from zfserve_model.explanation.deconvnet import StrongestUnit, project, strongest_maps, trace
from zfserve_model.importing.fingerprint import graph_fingerprint, stored_fingerprint
from zfserve_model.importing.importer import import_graph
from zfserve_runtime.bundle import Bundle, BundleError, file_digest, load_bundle

SCHEMA_1 = Path(__file__).parents[1] / "bundles" / "schema-1"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a model whose version 1 has schema 1 and whose version 2 is the upgrade."""
    folder = tmp_path_factory.mktemp("models") / "small"
    shutil.copytree(SCHEMA_1, folder / "1")
    upgrade_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def upgraded(model_folder: Path) -> Bundle:
    return load_bundle(model_folder)


def test_the_old_version_stays_and_the_next_one_has_this_schema(model_folder: Path, upgraded: Bundle) -> None:
    assert sorted(entry.name for entry in model_folder.iterdir()) == ["1", "2"]
    for file in SCHEMA_1.iterdir():
        assert file_digest(model_folder / "1" / file.name) == file_digest(file)
    assert (upgraded.manifest.schema_version, upgraded.manifest.version) == (2, "2")
    assert not (upgraded.folder / "weights.safetensors").exists()
    assert set(upgraded.manifest.files) == {entry.name for entry in upgraded.folder.iterdir()} - {"manifest.json"}


def test_what_was_measured_and_said_stays(upgraded: Bundle) -> None:
    old, new = load_bundle(SCHEMA_1).manifest, upgraded.manifest
    for field in ("name", "architecture", "feature_width", "classes", "input", "artefacts", "parity", "accuracy"):
        assert getattr(new, field) == getattr(old, field), field
    assert [(layer.name, layer.stage) for layer in new.layers] == [(layer.name, layer.stage) for layer in old.layers]
    assert [layer.receptive_field for layer in new.layers] == [layer.receptive_field for layer in old.layers]


def test_every_graph_has_the_new_fingerprint_and_the_same_outputs(upgraded: Bundle) -> None:
    old, fingerprint = load_bundle(SCHEMA_1), upgraded.manifest.fingerprint
    assert graph_fingerprint(onnx.load(upgraded.artefact("fp32"))) == fingerprint
    assert fingerprint != old.manifest.fingerprint
    pixels = load_golden(old).pixels[:4]
    for precision in upgraded.manifest.artefacts:
        assert stored_fingerprint(onnx.load(upgraded.artefact(precision))) == fingerprint
        engine = OnnxEngine(upgraded, precision, threads=1, max_batch_size=4)
        verify_engine(engine, upgraded)
        # The recorded outputs are from another kind of CPU, on which INT8 rounds differently.
        expected = OnnxEngine(old, precision, threads=1, max_batch_size=4).run(pixels).probabilities
        np.testing.assert_allclose(engine.run(pixels).probabilities, expected, rtol=0, atol=1e-5)


def test_every_layer_names_its_tensor_and_can_be_projected(upgraded: Bundle) -> None:
    graph = import_graph(upgraded.artefact("fp32"))
    layer = upgraded.manifest.resolve_layer("last")
    assert layer is not None
    assert layer.name == "relu5"
    image = torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(0))
    traced = trace(graph, image, [layer.tensor])
    maps = strongest_maps(traced, layer.tensor, 2)
    projections = list(project(traced, layer.tensor, maps, StrongestUnit()))
    assert len(projections) == 2


def test_an_upgrade_of_this_schema_is_refused(upgraded: Bundle) -> None:
    with pytest.raises(BundleError, match="has schema 2 already; it needs no upgrade"):
        upgrade_bundle(upgraded.folder)


def test_a_manifest_with_other_layers_leaves_no_bundle(tmp_path: Path) -> None:
    shutil.copytree(SCHEMA_1, tmp_path / "1")
    manifest = tmp_path / "1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"channels": 6,', '"channels": 7,', 1))
    with pytest.raises(BundleError, match="describes other layers"):
        upgrade_bundle(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]
