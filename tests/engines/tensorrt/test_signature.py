"""Tests the check of an engine's inputs, outputs and profiles, on a network that TensorRT for RTX parsed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from zfserve_engines.cuda.batch_sizes import BatchProfile, plan_profiles
from zfserve_engines.tensorrt.build_summary import TensorSummary, read_network
from zfserve_engines.tensorrt.builder import parse
from zfserve_engines.tensorrt.library import load_library
from zfserve_engines.tensorrt.signature import Signature, check_signature
from zfserve_runtime.bundle import Bundle, BundleError, ClassEntry

ColourBundle = Callable[..., Bundle]

PROFILES = plan_profiles((1, 8, 32))


def parsed_signature(graph: Path) -> Signature:
    """Returns the inputs and outputs of an ONNX file as TensorRT for RTX parses them."""
    library = load_library("tensorrt-rtx")
    builder = library.module.Builder(library.logger)
    network = builder.create_network(1 << int(library.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parse(library, network, graph)
    facts = read_network(network)
    return Signature(facts.inputs, facts.outputs, PROFILES)


def test_an_engine_of_the_bundle_passes_and_one_of_another_does_not(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle()
    signature = parsed_signature(bundle.artefact("fp32"))
    check_signature(signature, bundle.manifest)
    two = colour_bundle("two", classes=tuple(ClassEntry(class_id=name, label=name) for name in "ab"))
    with pytest.raises(BundleError, match=r"probabilities is float32 \(N, 3\), not float32 \(N, 2\); compile it again"):
        check_signature(signature, two.manifest)


PIXELS = TensorSummary("pixels", "uint8", (-1, 8, 8, 3))
PROBABILITIES = TensorSummary("probabilities", "float32", (-1, 3))
FEATURES = TensorSummary("features", "float32", (-1, 3))
FITTING = Signature((PIXELS,), (PROBABILITIES, FEATURES), PROFILES)


@pytest.mark.parametrize(
    ("signature", "fault"),
    [
        (replace(FITTING, outputs=(PROBABILITIES,)), "features is missing"),
        (replace(FITTING, inputs=()), "pixels is missing"),
        (replace(FITTING, inputs=(PIXELS, TensorSummary("scale", "float32", ()))), "scale is an unexpected input"),
        (
            replace(FITTING, outputs=(*FITTING.outputs, TensorSummary("logits", "float32", (-1, 3)))),
            "logits is an unexpected output",
        ),
        (
            replace(FITTING, inputs=(TensorSummary("pixels", "float32", (-1, 8, 8, 3)),)),
            r"pixels is float32 \(N, 8, 8, 3\), not uint8 \(N, 8, 8, 3\)",
        ),
        (
            replace(FITTING, outputs=(PROBABILITIES, TensorSummary("features", "float16", (-1, 3)))),
            r"features is float16 \(N, 3\), not float32",
        ),
        (replace(FITTING, inputs=(TensorSummary("pixels", "uint8", (4, 8, 8, 3)),)), r"pixels is uint8 \(4, 8, 8, 3\)"),
        (replace(FITTING, profiles=()), "no profile takes a batch of 1"),
        (
            replace(FITTING, profiles=(BatchProfile(1, 2), BatchProfile(4, 8))),
            "no profile takes a batch of 3",
        ),
    ],
)
def test_an_engine_that_does_not_fit(colour_bundle: ColourBundle, signature: Signature, fault: str) -> None:
    manifest = colour_bundle().manifest
    check_signature(FITTING, manifest)
    with pytest.raises(BundleError, match=fault):
        check_signature(signature, manifest)
