"""Keeps the strongest photos of each feature map. The memory does not grow with the number of photos.

The result does not depend on the order of the photos, and shards merge to exactly the result of the whole.
"""

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

COUNT = 9
"""The number of photos of each map, as in figure 2 of the paper."""


@dataclass(frozen=True, order=True)
class Unit:
    """Describes the strongest unit of one map in one photo. Units sort from the best to the worst.

    Attributes:
        order: minus the value by which photos are ranked.
        digest: the SHA-256 of the photo's file, in hexadecimal digits. Of equal values the smaller digest comes first.
        photo: the name of the photo below the folder of photos.
        row, column: the position of the unit in the map.
        activation: the activation of the unit.
    """

    order: float
    digest: str
    photo: str
    row: int
    column: int
    activation: float

    @property
    def value(self) -> float:
        """Returns the value by which photos are ranked: the activation, or what the unit adds to a class."""
        return -self.order


class Strongest:
    """Keeps the `COUNT` best units of each map, at most one for each photo.

    Copies of a photo, which have the same digest, count once, under the first of their names. Values that are not above
    0 are not kept: such a map says nothing about the photo.

    Args:
        maps: the indices of the maps.
    """

    def __init__(self, maps: Sequence[int]) -> None:
        self.maps = tuple(maps)
        self._units: dict[int, list[Unit]] = {index: [] for index in self.maps}
        self._floors = np.full(len(self.maps), np.finfo(np.float64).tiny)
        self._columns = np.array(self.maps, dtype=np.int64)
        self._places = {index: place for place, index in enumerate(self.maps)}

    def units(self, index: int) -> tuple[Unit, ...]:
        """Returns the units of a map, the best first."""
        return tuple(self._units[index])

    def offer(
        self, photo: str, digest: str, values: npt.NDArray[np.float32], rows: Sequence[int], columns: Sequence[int]
    ) -> None:
        """Offers the strongest units of all maps of the layer in one photo.

        Args:
            values: float32 (C,), the activations. C is the number of maps of the layer.
            rows, columns: the position of each unit.
        """
        chosen = values[self._columns]
        for place in np.flatnonzero(chosen >= self._floors):  # a NaN is never chosen
            index = self.maps[place]
            value = float(values[index])
            self.add(index, Unit(-value, digest, photo, rows[index], columns[index], value))

    def add(self, index: int, unit: Unit) -> None:
        """Adds a unit of a map, if it is among the best."""
        if not unit.value > 0:
            return
        units = self._units[index]
        copy = next((each for each in units if each.digest == unit.digest), None)
        if copy is not None:
            if copy <= unit:
                return
            units.remove(copy)
        bisect.insort(units, unit)
        del units[COUNT:]
        if len(units) == COUNT:
            self._floors[self._places[index]] = units[-1].value

    def merge(self, other: "Strongest") -> None:
        """Adds the units of the same maps in other photos."""
        for index in other.maps:
            for unit in other.units(index):
                self.add(index, unit)

    def document(self) -> dict[str, list[list[Any]]]:
        """Returns the units as a JSON document. Every float comes back exactly."""
        return {
            str(index): [
                [unit.value, unit.digest, unit.photo, unit.row, unit.column, unit.activation] for unit in units
            ]
            for index, units in self._units.items()
        }

    @classmethod
    def of_document(cls, document: Mapping[str, Iterable[Sequence[Any]]]) -> "Strongest":
        """Returns the units of a document that `document` made."""
        made = cls(sorted(int(index) for index in document))  # JSON sorts "10" before "2"
        for index, units in document.items():
            for value, digest, photo, row, column, activation in units:
                made.add(int(index), Unit(-value, digest, photo, row, column, activation))
        return made
