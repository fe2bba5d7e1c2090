import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.onnx.engine import OnnxEngine, can_still_run
from zfserve_engines.onnx.providers import CudaProvider, GpuProvider, TensorRTProvider
from zfserve_runtime.bundle import Artefact, Bundle, BundleError, ClassEntry, InputSpec
from zfserve_runtime.errors import EngineFailed

ColourBundle = Callable[..., Bundle]


def open_engine(bundle: Bundle, max_batch_size: int = 4) -> OnnxEngine:
    return OnnxEngine(bundle, "fp32", threads=1, max_batch_size=max_batch_size)


def edit_graph(bundle: Bundle, edit: Callable[[onnx.ModelProto], object]) -> Bundle:
    file = bundle.folder / "model.onnx"
    model = onnx.load(file)
    edit(model)
    onnx.save(model, file)
    return bundle


def test_rows_out_belong_to_rows_in(colour_bundle: ColourBundle) -> None:
    engine = open_engine(colour_bundle())
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    for row in range(3):
        pixels[row, ..., row] = 255
    outputs = engine.run(pixels)
    assert outputs.features.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    best = np.exp(5) / (np.exp(5) + 2)
    expected = np.where(np.eye(3) > 0, best, (1 - best) / 2)
    assert outputs.probabilities == pytest.approx(expected, abs=1e-6)
    assert outputs.probabilities.dtype == outputs.features.dtype == np.float32
    assert engine.run(pixels[1:2]).features.tolist() == [[0, 255, 0]]


def test_info_describes_the_engine(colour_bundle: ColourBundle) -> None:
    info = open_engine(colour_bundle()).info
    assert (info.runtime, info.provider, info.precision) == ("onnxruntime", "CPUExecutionProvider", "fp32")
    assert (info.max_batch_size, info.threads, info.device) == (4, 1, "CPU")


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="built for GPUs")
@pytest.mark.parametrize("provider", [CudaProvider(), TensorRTProvider()])
def test_a_provider_that_is_missing_is_named(colour_bundle: ColourBundle, provider: GpuProvider) -> None:
    with pytest.raises(EngineUnavailable, match=rf"no {provider.name}, only .*CPU.*extra `server-gpu`"):
        OnnxEngine(colour_bundle(), "fp32", threads=1, max_batch_size=2, provider=provider)


class MissingTensorRTProvider(TensorRTProvider):
    """Names a provider that this ONNX Runtime has, and a library that no machine has."""

    name = "CPUExecutionProvider"
    library = "libnvinfer.so.0"


def test_a_library_that_is_missing_is_named(colour_bundle: ColourBundle, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineUnavailable, match=r"^TensorRT 10 is not installed: libnvinfer\.so\.0: "):
        OnnxEngine(colour_bundle(), "fp32", threads=1, max_batch_size=1, provider=MissingTensorRTProvider())
    assert capfd.readouterr() == ("", "")


def test_a_device_is_lost_when_one_black_photo_fails_too() -> None:
    tried = []

    def lost(pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        tried.append(pixels)
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    assert not can_still_run(lost, (8, 8, 3))
    assert can_still_run(lambda pixels: [], (8, 8, 3))
    (black,) = tried
    assert black.shape == (1, 8, 8, 3)
    assert black.dtype == np.uint8
    assert not black.any()


def test_a_precision_that_is_missing_is_named(colour_bundle: ColourBundle) -> None:
    with pytest.raises(BundleError, match="no int8 artefact"):
        OnnxEngine(colour_bundle(), "int8", threads=1, max_batch_size=2)


def test_a_file_that_is_not_a_graph(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle()
    (bundle.folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"cannot load model\.onnx") as caught:
        open_engine(bundle)
    assert caught.value.__cause__ is not None
    assert str(caught.value.__cause__) not in str(caught.value)


def multiply_in_float16(model: onnx.ModelProto) -> None:
    """Multiplies the colours of all places by the identity in float16, with the places as the first axis."""
    nodes = [
        onnx.helper.make_node("Cast", ["pixels"], ["halves"], to=onnx.TensorProto.FLOAT16),
        onnx.helper.make_node("Reshape", ["halves", "rows"], ["colours"]),
        onnx.helper.make_node("Transpose", ["colours"], ["swapped"], perm=[1, 0, 2]),
        onnx.helper.make_node("MatMul", ["swapped", "identity"], ["product"]),
        onnx.helper.make_node("Transpose", ["product"], ["restored"], perm=[1, 0, 2]),
        onnx.helper.make_node("Cast", ["restored"], ["floats"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Reshape", ["floats", "image"], ["values"]),
    ]
    rest = list(model.graph.node[1:])
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    constants = {"identity": np.eye(3, dtype=np.float16), "rows": np.array([0, 64, 3]), "image": np.array([0, 8, 8, 3])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())


def test_a_float16_product_behind_a_transpose_is_loaded(colour_bundle: ColourBundle) -> None:
    """ONNX Runtime 1.32 ended the process while it optimised this part of a vision transformer."""
    artefacts = {"fp16": Artefact(file="model.onnx", golden_tolerance=0.01)}
    bundle = edit_graph(colour_bundle(artefacts=artefacts), multiply_in_float16)
    engine = OnnxEngine(bundle, "fp16", threads=1, max_batch_size=1)
    assert engine.run(np.full((1, 8, 8, 3), 255, np.uint8)).features.tolist() == [[255, 255, 255]]


def test_an_artefact_without_its_file(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle(artefacts={"fp32": Artefact(file="lost.onnx", golden_tolerance=1e-5)})
    with pytest.raises(BundleError, match=r"cannot load lost\.onnx"):
        open_engine(bundle)


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "photo"


def drop_features(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def take_floats(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def fix_the_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def add_an_input(model: onnx.ModelProto) -> None:
    extra = onnx.helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, [1])
    model.graph.input.append(extra)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rename_input, "photo is an unexpected input; pixels is missing"),
        (drop_features, "features is missing"),
        (take_floats, r"pixels is tensor\(float\) .*, not tensor\(uint8\)"),
        (fix_the_batch, r"pixels is .*\[2, 8, 8, 3\], not .*\('N', 8, 8, 3\)"),
        (add_an_input, "scale is an unexpected input"),
    ],
)
def test_a_graph_that_does_not_fit(
    colour_bundle: ColourBundle, edit: Callable[[onnx.ModelProto], object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        open_engine(edit_graph(colour_bundle(), edit))


def test_a_manifest_that_does_not_fit(colour_bundle: ColourBundle) -> None:
    with pytest.raises(BundleError, match=r"probabilities is .*3.*, not .*2"):
        open_engine(colour_bundle("two", classes=tuple(ClassEntry(class_id=name, label=name) for name in "ab")))
    with pytest.raises(BundleError, match="features is "):
        open_engine(colour_bundle("wide", feature_width=4))
    large = InputSpec(height=9, width=8, resize="squash", shorter_side=9, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    with pytest.raises(BundleError, match="pixels is "):
        open_engine(colour_bundle("tall", input=large))


def test_a_dynamic_width_is_measured(colour_bundle: ColourBundle) -> None:
    def cut_features(model: onnx.ModelProto) -> None:
        """Makes the graph drop one of three features by a mask. So only a run shows the width of `features`."""
        _, mean, divide, _ = model.graph.node
        mean.output[0] = divide.input[0] = "means"
        model.graph.node.insert(2, onnx.helper.make_node("Compress", ["means", "mask"], ["features"], axis=1))
        model.graph.initializer.append(onnx.helper.make_tensor("mask", onnx.TensorProto.BOOL, [3], [1, 1, 0]))
        model.graph.output[1].type.tensor_type.shape.dim[1].dim_param = "width"

    with pytest.raises(BundleError, match=r"'features' has shape \(4, 2\) for 4 photos .* \(4, 3\)"):
        open_engine(edit_graph(colour_bundle(), cut_features))


def test_a_failure_of_the_runtime_is_translated_and_logged(
    colour_bundle: ColourBundle, caplog: pytest.LogCaptureFixture
) -> None:
    def index_by_the_brightest(model: onnx.ModelProto) -> None:
        """Makes the graph index a table of one entry with the brightest value. So only black photos are in bounds."""
        added = [
            onnx.helper.make_node("ReduceMax", ["values"], ["brightest"], keepdims=0),
            onnx.helper.make_node("Cast", ["brightest"], ["index"], to=onnx.TensorProto.INT64),
            onnx.helper.make_node("Gather", ["table", "index"], ["looked_up"]),
        ]
        model.graph.node[2].input[1] = "looked_up"
        model.graph.initializer.append(onnx.helper.make_tensor("table", onnx.TensorProto.FLOAT, [1], [51.0]))
        for place, node in enumerate(added, start=2):
            model.graph.node.insert(place, node)

    engine = open_engine(edit_graph(colour_bundle(), index_by_the_brightest))
    black = np.zeros((3, 8, 8, 3), np.uint8)
    with caplog.at_level(logging.ERROR), pytest.raises(EngineFailed, match="failed on this batch") as caught:
        engine.run(black + np.uint8(1))
    assert caught.value.__cause__ is not None
    assert "indices" in str(caught.value.__cause__)
    assert "indices" not in caught.value.message
    assert "batch of 3" in caplog.text
    assert len(engine.run(black).probabilities) == 3, "one failed batch must not spoil the next"


def test_a_closed_engine_does_not_run(colour_bundle: ColourBundle) -> None:
    engine = open_engine(colour_bundle())
    engine.close()
    with pytest.raises(EngineFailed):
        engine.run(np.zeros((1, 8, 8, 3), np.uint8))
