"""Finds the maps that say nothing, and the maps that say the same."""

from collections.abc import Sequence

from zfserve_studies.atlas.strongest import COUNT, Strongest, Unit

DEAD_SHARE = 1e-3
"""A map is dead if no photo raises it above this share of the layer's highest value."""

COMMON_PHOTOS = 7
"""Two maps are near-duplicates if at least this many of their nine photos are the same, at about the same place."""

LEAST_PHOTOS = 10 * COUNT
"""Among fewer photos, any two maps have many of their nine in common, so near-duplicates are not looked for."""


def dead_maps(strongest: Strongest) -> tuple[int, ...]:
    """Returns the maps that no photo raises above `DEAD_SHARE` of the layer's highest value."""
    tops = {index: units[0].value if (units := strongest.units(index)) else 0.0 for index in strongest.maps}
    floor = DEAD_SHARE * max(tops.values(), default=0.0)
    return tuple(index for index, top in tops.items() if top <= floor)


def near_duplicates(strongest: Strongest, photos: int) -> tuple[tuple[int, int, int], ...]:
    """Returns the pairs of maps that are near-duplicates, each with the number of photos that they share.

    A photo counts as shared if the units of both maps are at most one row and one column apart. Dead maps are left out.

    Args:
        photos: the number of photos that were read. Fewer than `LEAST_PHOTOS` give no pairs.
    """
    if photos < LEAST_PHOTOS:
        return ()
    dead = set(dead_maps(strongest))
    seen: dict[str, list[tuple[int, Unit]]] = {}
    for index in strongest.maps:
        if index not in dead:
            for unit in strongest.units(index):
                seen.setdefault(unit.digest, []).append((index, unit))
    shared: dict[tuple[int, int], int] = {}
    for units in seen.values():
        for pair in _close_pairs(units):
            shared[pair] = shared.get(pair, 0) + 1
    return tuple((*pair, count) for pair, count in sorted(shared.items()) if count >= COMMON_PHOTOS)


def _close_pairs(units: Sequence[tuple[int, Unit]]) -> list[tuple[int, int]]:
    return [
        (first, second)
        for at, (first, one) in enumerate(units)
        for second, other in units[at + 1 :]
        if abs(one.row - other.row) <= 1 and abs(one.column - other.column) <= 1
    ]
