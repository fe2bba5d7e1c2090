"""Defines the results of `occlude` and `occlusion` as frozen dataclasses, and the fills of the square.

Each field has the name that it has in `zfserve.proto`. `study_replies` makes the results from the messages.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias, TypeVar

from zfserve.results import Box, ClassScore, ModelIdentity, Position
from zfserve.studies import Computation

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Blur:
    """Fills the square of `occlude` with the blurred photo.

    Attributes:
        sigma: the standard deviation of the Gaussian, in pixels of the model's input, above 0 and up to 64.
    """

    sigma: float = 10.0


Fill: TypeAlias = tuple[int, int, int] | Literal["mean"] | Blur
"""Chooses the fill of the square of `occlude`. It replaces pixels of the model's input, after the photo was resized.

- a tuple (red, green, blue) is a colour, each value from 0 to 255.
- "mean" is the mean colour of the model's input.
- a `Blur` is the model's input, blurred.
"""

MID_GREY = (128, 128, 128)
"""`occlude` fills the square with this colour by default."""


@dataclass(frozen=True)
class OcclusionPlan:
    """Tells what a call of `occlude` computes.

    Attributes:
        tops: the top edge of the square in each row of the grid of places, in pixels of the model's input.
        lefts: the left edge of the square in each column of the grid, in pixels of the model's input.
        size: the side of the square, in pixels of the model's input.
        for_class: the class, with its probability in the photo without a square.
        best: the most probable class of the photo without a square.
        layer: the name of the layer. "" if the network has no layer that can be read.
        map: the feature map whose activity is summed, from 0. None if the network has no layer that can be read.
        map_sum: the sum over space of the map's activity in the photo without a square. 0 if `map` is None.
        unit: the strongest unit of the map in the photo without a square. None if `map` is None.
        activation: the activation of that unit. 0 if `map` is None.
        computation: how the values are computed.
        model: the model that answers.
        source_box: the region of the upright photo, as it was sent, that the model's input covers. None if the server
            does not know the size of the photo.
    """

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    size: int
    for_class: ClassScore
    best: ClassScore
    layer: str
    map: int | None
    map_sum: float
    unit: Position | None
    activation: float
    computation: Computation
    model: ModelIdentity
    source_box: Box | None


@dataclass(frozen=True)
class OcclusionSummary:
    """Tells where the square did most.

    Attributes:
        box: the square at the place where the probability of the class is lowest, in pixels of the model's input. It is
            the place that matters most.
        source_box: the same region in pixels of the upright photo as it was sent. None if the server does not know the
            size of the photo.
        probability: the probability of the class at that place.
        map_box: the square at the place where the map's activity is lowest, in pixels of the model's input. None if
            there is no map.
        map_source_box: the same region in pixels of the upright photo as it was sent, or None.
        map_sum: the sum over space of the map's activity at that place. 0 if there is no map.
    """

    box: Box
    source_box: Box | None
    probability: float
    map_box: Box | None
    map_source_box: Box | None
    map_sum: float


@dataclass(frozen=True)
class OcclusionUpdate:
    """Holds what `occlude` has found for some places. The first update has the plan and no places.

    Attributes:
        sequence: the number of this update, from 0.
        total_places: the number of places of all updates together.
        done_places: the number of places that have come, with this update.
        plan: what the call computes. None except in the first update.
        rows: the row in the grid of places of each result of this update, from 0.
        columns: the column in the grid of places of each result, from 0.
        probabilities: the probability of the class at each place, in [0, 1].
        best_classes: the index of the most probable class at each place.
        map_sums: the sum over space of the map's activity at each place. Empty if there is no map.
        spacing: the distance in rows and columns between neighbouring places of the grid that are known now. It is 1 at
            the end.
        summary: where the square did most. None except in the last update.
    """

    sequence: int
    total_places: int
    done_places: int
    plan: OcclusionPlan | None
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    probabilities: tuple[float, ...]
    best_classes: tuple[int, ...]
    map_sums: tuple[float, ...]
    spacing: int
    summary: OcclusionSummary | None


@dataclass(frozen=True)
class Occlusion:
    """Holds the results of all places of one photo. Each grid is a tuple of rows, `grid[row][column]`.

    Attributes:
        plan: what was computed. `plan.tops` belongs to the rows of the grids, and `plan.lefts` to their columns.
        probabilities: the probability of the class at each place, in [0, 1].
        best_classes: the index of the most probable class at each place.
        map_sums: the sum over space of the map's activity at each place. Empty if there is no map.
        summary: where the square did most.
    """

    plan: OcclusionPlan
    probabilities: tuple[tuple[float, ...], ...]
    best_classes: tuple[tuple[int, ...], ...]
    map_sums: tuple[tuple[float, ...], ...]
    summary: OcclusionSummary

    @classmethod
    def from_updates(cls, updates: Iterable[OcclusionUpdate]) -> Self:
        """Joins all updates of one call of `occlude`.

        Raises:
            ValueError: an update is missing.
        """
        received = list(updates)
        plan = next((update.plan for update in received if update.plan is not None), None)
        summary = next((update.summary for update in received if update.summary is not None), None)
        if plan is None or summary is None or sum(len(update.rows) for update in received) < _places(plan):
            raise ValueError("an update is missing; pass all that occlude yields")
        places = [place for update in received for place in zip(update.rows, update.columns, strict=True)]

        def grid(values: Iterable[_Value]) -> tuple[tuple[_Value, ...], ...]:
            at = dict(zip(places, values, strict=True))
            columns = range(len(plan.lefts))
            return tuple(tuple(at[row, column] for column in columns) for row in range(len(plan.tops)))

        return cls(
            plan=plan,
            probabilities=grid(value for update in received for value in update.probabilities),
            best_classes=grid(value for update in received for value in update.best_classes),
            map_sums=() if plan.map is None else grid(value for update in received for value in update.map_sums),
            summary=summary,
        )


def _places(plan: OcclusionPlan) -> int:
    return len(plan.tops) * len(plan.lefts)
