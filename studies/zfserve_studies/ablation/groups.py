"""Parses groups of feature maps."""

import re
from collections.abc import Sequence

Groups = tuple[tuple[int, ...], ...]


class GroupsUnusable(ValueError):
    """The groups cannot be used. The message says why and what to do."""


def parse_maps(text: str) -> tuple[int, ...]:
    """Returns the maps of a text such as "0-15,40", each once and rising.

    Raises:
        GroupsUnusable: the text is no list of maps.
    """
    maps: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise GroupsUnusable(f"{text!r} is no list of maps; write maps such as 0-15,40")
        maps.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return tuple(sorted(maps))


def choose_groups(maps: str | None, groups: str | None, channels: int) -> Groups:
    """Returns the groups that the user chose. Without a choice each map of the layer is a group of its own.

    Args:
        maps: maps that are each a group of their own, or None.
        groups: groups of maps, separated by semicolons, or None.
        channels: the number of maps of the layer.

    Raises:
        GroupsUnusable: a text cannot be parsed, or the layer has no such map.
    """
    if groups is not None:
        chosen: Sequence[tuple[int, ...]] = [parse_maps(part) for part in groups.split(";")]
    else:
        chosen = [(at,) for at in (range(channels) if maps is None else parse_maps(maps))]
    if (most := max(max(group) for group in chosen)) >= channels:
        raise GroupsUnusable(f"there is no map {most}; the layer has the maps 0 to {channels - 1}")
    return tuple(chosen)
