"""Reads the inputs, outputs and profiles of a compiled engine and checks that they fit the bundle.

`plan` uses it, which needs a GPU. Nothing in this module needs a GPU.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from zfserve_runtime.bundle import GRAPH_INPUT, BundleError, Manifest

from zfserve_engines.cuda.batch_sizes import BatchProfile, first_missing_size
from zfserve_engines.tensorrt.build_summary import DYNAMIC, TensorSummary


@dataclass(frozen=True)
class Signature:
    """Holds the inputs, outputs and optimisation profiles of a compiled engine."""

    inputs: tuple[TensorSummary, ...]
    outputs: tuple[TensorSummary, ...]
    profiles: tuple[BatchProfile, ...]


def read_signature(module: Any, engine: Any) -> Signature:
    """Reads an `ICudaEngine` of the library `module`."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT]

    def describe(name: str) -> TensorSummary:
        dtype = np.dtype(module.nptype(engine.get_tensor_dtype(name))).name
        return TensorSummary(name, dtype, tuple(engine.get_tensor_shape(name)))

    profiles = []
    for index in range(engine.num_optimization_profiles if GRAPH_INPUT in inputs else 0):
        smallest, _, largest = engine.get_tensor_profile_shape(GRAPH_INPUT, index)
        profiles.append(BatchProfile(smallest[0], largest[0]))
    return Signature(
        inputs=tuple(describe(name) for name in inputs),
        outputs=tuple(describe(name) for name in names if name not in inputs),
        profiles=tuple(profiles),
    )


def check_signature(signature: Signature, manifest: Manifest) -> None:
    """Raises BundleError if the inputs, outputs or profiles do not fit the manifest."""
    spec = manifest.input
    wanted = {
        GRAPH_INPUT: TensorSummary(GRAPH_INPUT, "uint8", (DYNAMIC, spec.height, spec.width, 3)),
        **{name: TensorSummary(name, "float32", (DYNAMIC, width)) for name, width in manifest.output_widths.items()},
    }
    found = {tensor.name: tensor for tensor in (*signature.inputs, *signature.outputs)}
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{tensor.name} is an unexpected input" for tensor in signature.inputs if tensor.name != GRAPH_INPUT]
    # TensorRT writes every output, and refuses to run if an output has no memory.
    faults += [f"{tensor.name} is an unexpected output" for tensor in signature.outputs if tensor.name not in wanted]
    for name in wanted.keys() & found.keys():
        if found[name] != wanted[name]:
            faults.append(f"{name} is {_describe(found[name])}, not {_describe(wanted[name])}")
    if (size := first_missing_size(signature.profiles)) is not None:
        faults.append(f"no profile takes a batch of {size}")
    if faults:
        raise BundleError("the engine does not fit the manifest: " + "; ".join(sorted(faults)) + "; compile it again")


def _describe(tensor: TensorSummary) -> str:
    axes = ", ".join("N" if size == DYNAMIC else str(size) for size in tensor.shape)
    return f"{tensor.dtype} ({axes})"
