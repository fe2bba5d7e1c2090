"""Finds the target of a Reshape that suits batches of every size. `folding` uses it."""

from collections.abc import Sequence


def batch_free_target(before: Sequence[tuple[int, ...]], after: Sequence[tuple[int, ...]]) -> list[int] | None:
    """Returns the target of a Reshape that suits every batch, from its input's and output's shapes for some batches.

    A 0 keeps the input's size, and one -1 takes what is left. Returns None if these two cannot say it.
    """
    if any(0 in shape for shape in (*before, *after)):
        return None
    target = list(after[0])
    varying = [axis for axis in range(len(target)) if any(shape[axis] != target[axis] for shape in after)]
    if len(after) == 1 and target and before[0] and target[0] == before[0][0] == 1:
        varying = [0]  # The file fixes a batch of one. What leads on both sides is the batch.
    free = [axis for axis in varying if not _is_kept(axis, before, after)]
    if len(free) > 1:
        return None
    for axis in varying:
        target[axis] = -1 if axis in free else 0
    return target


def _is_kept(axis: int, before: Sequence[tuple[int, ...]], after: Sequence[tuple[int, ...]]) -> bool:
    return all(len(b) > axis and b[axis] == a[axis] for b, a in zip(before, after, strict=True))
