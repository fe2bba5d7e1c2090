"""Every room's tests can use a bundle that is small enough to compute by hand."""

import logging
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from zfserve_engines.golden import Golden, write_golden
from zfserve_runtime.bundle import Artefact, Bundle, ClassEntry, InputSpec, LayerEntry, Manifest, file_digest

ColourBundle = Callable[..., Bundle]

# pytest limits the time of a test. hypothesis' own deadline would fail by chance on a busy machine.
hypothesis.settings.register_profile("zfserve", deadline=None)
hypothesis.settings.load_profile("zfserve")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs with SIGINT ignored, and child processes inherit that. Tests that interrupt their
    # children need the default.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def colour_bundle(tmp_path: Path) -> ColourBundle:
    """Writes a bundle whose network classifies photos of 8 x 8 pixels as red, green or blue.

    `features` are the means of the channels, in [0, 255]. `probabilities` are the softmax of the features divided by
    51, so pure red has logits (5, 0, 0). Keyword arguments replace fields of the manifest.
    """

    def write(name: str = "bundle", **changes: Any) -> Bundle:
        folder = tmp_path / name
        folder.mkdir()
        _write_colour_graph(folder / "model.onnx")
        pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
        logits = pixels.mean(axis=(1, 2), dtype=np.float64) / 51
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        write_golden(Golden(pixels, {"fp32": probabilities.astype(np.float32)}), folder)
        fields: dict[str, Any] = {
            "name": "colours",
            "version": "1",
            "architecture": "colours",
            "feature_width": 3,
            "classes": tuple(ClassEntry(class_id=f"c-{name}", label=name) for name in ("red", "green", "blue")),
            "input": InputSpec(
                height=8, width=8, resize="squash", shorter_side=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
            ),
            "layers": (
                LayerEntry(
                    name="mean", kind="conv", channels=3, height=1, width=1, receptive_field=8, stride=8, offset=0
                ),
            ),
            "artefacts": {"fp32": Artefact(file="model.onnx", golden_tolerance=1e-5)},
            "fingerprint": "ab" * 32,
            "files": {file.name: file_digest(file) for file in folder.iterdir()},
        }
        manifest = Manifest(**fields | changes)
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        return Bundle(folder, manifest)

    return write


@pytest.fixture
def root_logger() -> Iterator[None]:
    """Undoes the changes that a command makes to the root logger."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Yields a folder that other users can reach. They cannot reach pytest's own folders."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder
        folder.chmod(0o777)


def _write_colour_graph(file: Path) -> None:
    import onnx  # onnx is slow to import, and most tests need no bundle
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["features"], keepdims=0),
        helper.make_node("Div", ["features", "temperature"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3]),
        ],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("temperature", TensorProto.FLOAT, [], [51.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, file)
