"""What a compiled engine takes and gives, whether that fits the bundle, and the batch sizes it is run at.

Used by `tensorrt_engine`, which has a card; nothing here needs one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from zfserve_runtime.bundle import GRAPH_INPUT, BundleError, Manifest

from zfserve_engines.tensorrt.build_summary import DYNAMIC, BatchProfile, TensorSummary


@dataclass(frozen=True)
class Signature:
    """The outside of a compiled engine."""

    inputs: tuple[TensorSummary, ...]
    outputs: tuple[TensorSummary, ...]
    profiles: tuple[BatchProfile, ...]


def read_signature(module: Any, engine: Any) -> Signature:
    """Read an `ICudaEngine`; `module` is the library it comes from."""
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
    """Raises BundleError where inputs, outputs or profiles are not those that the bundle asks for."""
    spec = manifest.input
    wanted = {
        GRAPH_INPUT: TensorSummary(GRAPH_INPUT, "uint8", (DYNAMIC, spec.height, spec.width, 3)),
        **{name: TensorSummary(name, "float32", (DYNAMIC, width)) for name, width in manifest.output_widths.items()},
    }
    found = {tensor.name: tensor for tensor in (*signature.inputs, *signature.outputs)}
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{tensor.name} is an input nobody feeds" for tensor in signature.inputs if tensor.name != GRAPH_INPUT]
    # TensorRT writes every output, and refuses to run while one has no memory.
    faults += [f"{tensor.name} is an output nobody reads" for tensor in signature.outputs if tensor.name not in wanted]
    for name in wanted.keys() & found.keys():
        if found[name] != wanted[name]:
            faults.append(f"{name} is {_show(found[name])}, not {_show(wanted[name])}")
    faults += [f"no profile takes a batch of {size}" for size in _gaps(signature.profiles)]
    if faults:
        raise BundleError("the engine does not fit the manifest: " + "; ".join(sorted(faults)) + "; compile it again")


def choose_profile(profiles: Sequence[BatchProfile], size: int) -> int:
    """Index of the profile for batches of `size`: of those that take it, the one tuned for the size nearest to it."""
    fitting = [index for index, profile in enumerate(profiles) if profile.smallest <= size <= profile.largest]
    return min(fitting, key=lambda index: profiles[index].largest)


def plan_batch_sizes(profiles: Sequence[BatchProfile], most: int) -> tuple[int, ...]:
    """The batch sizes to prepare for batches up to `most`, ascending; others are filled up to the next of them.

    Each costs a context and a CUDA graph, so there are not as many as there can be batches: 1, 2, 3, 4, 6, 8, 12, 16,
    24, 32 and so on, so that a third of the work is idle at most, and the largest of each profile, so that no batch is
    filled up beyond the profile tuned for it.

    Returns:
        The last is `most`, or the largest batch that the profiles take.
    """
    largest = min(most, max(profile.largest for profile in profiles))
    sizes = {largest, *(profile.largest for profile in profiles)}
    power = 1
    while power <= largest:
        sizes |= {power, power * 3 // 2}
        power *= 2
    return tuple(sorted(size for size in sizes if size <= largest))


def _gaps(profiles: Sequence[BatchProfile]) -> list[int]:
    """The first batch size that no profile takes, below the largest that one does; 1 where there is no profile."""
    largest = max((profile.largest for profile in profiles), default=1)
    missing = (
        size for size in range(1, largest + 1) if not any(fit.smallest <= size <= fit.largest for fit in profiles)
    )
    return [size for size in [next(missing, None)] if size is not None]


def _show(tensor: TensorSummary) -> str:
    axes = ", ".join("N" if size == DYNAMIC else str(size) for size in tensor.shape)
    return f"{tensor.dtype} ({axes})"
