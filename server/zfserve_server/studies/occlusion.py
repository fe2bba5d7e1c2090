"""Slides a square over a photo: the call `Occlude` (Zeiler & Fergus, figure 7). `study_service` calls it."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from zfserve_engines.images.input_image import InputImage
from zfserve_engines.readings.plan import ReadingPlan
from zfserve_protos.v1 import zfserve_pb2 as pb

from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.studies.occluder import Occluder, make_fill
from zfserve_server.studies.occlusion_request import OcclusionSettings
from zfserve_server.studies.places import coarse_to_fine
from zfserve_server.studies.running import Chunk, ImageRunner, StudyCall, open_runner

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Focus:
    """Holds what the study follows, and what it is in the photo without a square.

    Attributes:
        class_index: the class whose probability is told.
        map: the map whose activity is told; None where the network has no layer that can be read.
        map_sum: the sum over space of the map's activity.
        row, column, activation: the strongest unit of the map.
    """

    class_index: int
    map: int | None = None
    map_sum: float = 0.0
    row: int = 0
    column: int = 0
    activation: float = 0.0


class Step(NamedTuple):
    """Holds places that are run together.

    Attributes:
        spacing: once they are known, the known places are this many rows and columns apart; 0 while the coarsest level
            is not complete.
        places: int64 (N, 2), rows and columns of the grid.
    """

    spacing: int
    places: Places


async def occlude(
    call: StudyCall, settings: OcclusionSettings, image: InputImage
) -> AsyncGenerator[pb.OccludeResponse, None]:
    """Yields the plan, then the places from coarse to fine, and with the last ones the summary.

    Raises:
        ServiceError: see `ImageRunner.run`.
    """
    layer = settings.layer
    plan = ReadingPlan((layer.reading("strongest"), layer.reading("sums")) if layer else ())
    async with open_runner(call, plan) as runner:
        untouched = await runner.run_one(image.pixels)
        focus = _find_focus(settings, untouched)
        grid = _Grid(settings, focus)
        first = pb.OccludeResponse(plan=_describe(call, settings, focus, untouched, image))
        first.plan.computation.CopyFrom(runner.computation)
        first.total_places = grid.total
        yield first
        async for message in _run_places(runner, settings, grid, image):
            if message.done_places == grid.total:
                message.summary.CopyFrom(grid.summarise(image))
            yield message


async def _run_places(
    runner: ImageRunner, settings: OcclusionSettings, grid: "_Grid", image: InputImage
) -> AsyncGenerator[pb.OccludeResponse, None]:
    """Yields a message for the whole coarsest level, and for each later batch of places."""
    fill = await asyncio.to_thread(make_fill, image.pixels, settings.request)
    occluder = Occluder(image.pixels, fill, settings.size)
    edges = np.array(settings.tops), np.array(settings.lefts)

    def cover(places: Places) -> Chunk:
        corners = np.stack([edges[0][places[:, 0]], edges[1][places[:, 1]]], axis=1)
        return Chunk(occluder.cover(corners))

    steps = list(_steps(len(settings.tops), len(settings.lefts), runner.chunk_size))
    message, sequence = pb.OccludeResponse(), 1
    async with aclosing(runner.run(partial(cover, step.places) for step in steps)) as chunks:
        for step in steps:
            _, results = await anext(chunks)
            grid.add(message, step.places, results)
            if step.spacing:
                message.sequence, message.spacing, message.total_places = sequence, step.spacing, grid.total
                message.done_places = grid.done
                yield message
                message, sequence = pb.OccludeResponse(), sequence + 1


def _steps(rows: int, columns: int, size: int) -> Iterator[Step]:
    """Yields the places of a grid in the order in which they run, at most `size` at once."""
    known = 0
    for spacing, places in coarse_to_fine(rows, columns):
        for first in range(0, len(places), size):
            is_last = first + size >= len(places)
            yield Step(spacing if is_last else known, places[first : first + size])
        known = spacing


def _find_focus(settings: OcclusionSettings, untouched: InferenceResult) -> Focus:
    """Chooses what the request leaves open: the most probable class, and the map with the strongest unit."""
    class_index = settings.class_index
    if class_index is None:
        class_index = int(untouched.probabilities.argmax())
    if settings.layer is None:
        return Focus(class_index)
    strongest, sums = untouched.readings
    assert strongest.rows is not None, "the form `strongest` has positions"
    assert strongest.columns is not None
    chosen = int(strongest.values.argmax()) if settings.map is None else settings.map
    return Focus(
        class_index,
        chosen,
        float(sums.values[chosen]),
        int(strongest.rows[chosen]),
        int(strongest.columns[chosen]),
        float(strongest.values[chosen]),
    )


def _describe(
    call: StudyCall, settings: OcclusionSettings, focus: Focus, untouched: InferenceResult, image: InputImage
) -> pb.OcclusionPlan:
    height, width = image.pixels.shape[:2]
    plan = pb.OcclusionPlan(
        tops=settings.tops,
        lefts=settings.lefts,
        size=settings.size,
        for_class=call.model.class_score(untouched.probabilities, focus.class_index),
        best=call.model.class_score(untouched.probabilities),
        model=call.model.identity,
        source_box=_source_box(image, (0, 0, width, height)),
    )
    if settings.layer is not None and focus.map is not None:
        plan.layer, plan.map, plan.map_sum = settings.layer.name, focus.map, focus.map_sum
        plan.unit.CopyFrom(pb.Position(row=focus.row, column=focus.column))
        plan.activation = focus.activation
    return plan


class _Grid:
    """Collects the results of all places.

    Attributes:
        total, done: the number of places, and of those that are known.
    """

    def __init__(self, settings: OcclusionSettings, focus: Focus) -> None:
        shape = len(settings.tops), len(settings.lefts)
        self._settings = settings
        self._focus = focus
        self._probabilities = np.full(shape, np.nan, np.float32)
        self._map_sums = np.full(shape, np.nan, np.float32)
        self.total = self._probabilities.size
        self.done = 0

    def add(self, message: pb.OccludeResponse, places: Places, results: Sequence[InferenceResult]) -> None:
        """Keeps the results of `places`, int64 (N, 2), and adds them to `message`."""
        rows, columns = places[:, 0], places[:, 1]
        probabilities = [float(result.probabilities[self._focus.class_index]) for result in results]
        self._probabilities[rows, columns] = probabilities
        message.rows.extend(rows.tolist())
        message.columns.extend(columns.tolist())
        message.probabilities.extend(probabilities)
        message.best_classes.extend(int(result.probabilities.argmax()) for result in results)
        if self._focus.map is not None:
            map_sums = [float(result.readings[1].values[self._focus.map]) for result in results]
            self._map_sums[rows, columns] = map_sums
            message.map_sums.extend(map_sums)
        self.done += len(results)

    def summarise(self, image: InputImage) -> pb.OcclusionSummary:
        """Returns the places at which the class is least probable and the map least active. All places must be known.

        Of equal places the first counts, row by row.
        """
        box, probability = self._lowest(self._probabilities)
        summary = pb.OcclusionSummary(box=_box(box), source_box=_source_box(image, box), probability=probability)
        if self._focus.map is not None:
            map_box, summary.map_sum = self._lowest(self._map_sums)
            summary.map_box.CopyFrom(_box(map_box))
            summary.map_source_box.CopyFrom(_source_box(image, map_box))
        return summary

    def _lowest(self, values: npt.NDArray[np.float32]) -> tuple[tuple[int, int, int, int], float]:
        """Returns the square with the lowest value (left, top, right, bottom), and the value."""
        row, column = np.unravel_index(int(values.argmin()), values.shape)
        top, left, size = self._settings.tops[row], self._settings.lefts[column], self._settings.size
        return (left, top, left + size, top + size), float(values[row, column])


def _box(sides: tuple[int, int, int, int]) -> pb.Box:
    left, top, right, bottom = sides
    return pb.Box(left=left, top=top, right=right, bottom=bottom)


def _source_box(image: InputImage, sides: tuple[int, int, int, int]) -> pb.Box:
    return _box(image.source_box(*sides))
