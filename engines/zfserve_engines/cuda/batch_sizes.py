"""Chooses the batch sizes that an engine on a GPU prepares, and the optimisation profile of each.

The engines on TensorRT, and those on ONNX Runtime with a GPU, call it. Nothing here needs a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchProfile:
    """The range of batch sizes that an optimisation profile of TensorRT takes. It is tuned for the largest.

    Attributes:
        smallest: the smallest batch size.
        largest: the largest batch size.
    """

    smallest: int
    largest: int


def plan_profiles(batches: Sequence[int]) -> tuple[BatchProfile, ...]:
    """Returns one profile for each of `batches`, which ascend. Each profile begins after the largest batch of the
    previous one; see `BuildSettings.batches`.
    """
    return tuple(BatchProfile(before + 1, largest) for before, largest in zip((0, *batches[:-1]), batches, strict=True))


def choose_profile(profiles: Sequence[BatchProfile], size: int) -> int:
    """Returns the index of the profile that runs batches of `size`.

    Several profiles may take this size. The function chooses the one that is tuned for the nearest size.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.smallest <= size <= profile.largest]
    return min(fitting, key=lambda index: profiles[index].largest)


def plan_batch_sizes(profiles: Sequence[BatchProfile], max_batch_size: int) -> tuple[int, ...]:
    """Returns the batch sizes to prepare for batches of up to `max_batch_size` photos, ascending.

    A batch of another size is padded to the next prepared size. Each size costs a context and a CUDA graph, so only
    some are prepared: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32 and so on, and the largest size of each profile. So padding is
    at most a third of the work, and no batch is padded beyond the profile that is tuned for it.

    Returns:
        The sizes. The last is `max_batch_size`, or the largest batch that the profiles take if that is smaller.
    """
    largest = min(max_batch_size, max(profile.largest for profile in profiles))
    sizes = {largest, *(profile.largest for profile in profiles)}
    power = 1
    while power <= largest:
        sizes |= {power, power * 3 // 2}
        power *= 2
    return tuple(sorted(size for size in sizes if size <= largest))


def first_missing_size(profiles: Sequence[BatchProfile]) -> int | None:
    """Returns the smallest batch size that no profile takes; None if the profiles take every size up to the largest.

    If `profiles` is empty, it returns 1.
    """
    largest = max((profile.largest for profile in profiles), default=1)
    sizes = range(1, largest + 1)
    return next((size for size in sizes if not any(fit.smallest <= size <= fit.largest for fit in profiles)), None)
