"""Reads what layers compute for photos: the call `Activations`. `study_service` calls it."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from zfserve_engines.readings.plan import Form, ReadingPlan
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.errors import InvalidInput

from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.studies.layers import FEATURES, ReadLayer, find_layers
from zfserve_server.studies.limits import (
    MAX_GRID_SIDE,
    MAX_LAYERS,
    MAX_PHOTOS,
    MESSAGE_BYTES,
    check_count,
    check_reply,
)
from zfserve_server.studies.pooling import pool_to_grid
from zfserve_server.studies.running import Chunk, StudyCall, open_runner

_STRONGEST_BYTES = 12
"""The bytes of a map's strongest unit in a message: a float, and a row and a column of up to 4 bytes each."""


@dataclass(frozen=True)
class ActivationsSettings:
    """Holds what an `Activations` request asks for.

    Attributes:
        grid: the rows and columns of the grid for ACTIVATION_FORM_GRID, else (0, 0).
    """

    layers: tuple[ReadLayer, ...]
    form: pb.ActivationForm.ValueType
    grid: tuple[int, int]

    @property
    def reading_form(self) -> Form:
        """The form in which the engine reads a layer. The server pools whole maps to a grid."""
        return "strongest" if self.form == pb.ACTIVATION_FORM_STRONGEST else "maps"

    def size_of(self, layer: ReadLayer) -> tuple[int, int]:
        """Returns the rows and columns that the answer has for each map of `layer`. Features stay as they are."""
        if self.form == pb.ACTIVATION_FORM_MAPS or layer.name == FEATURES:
            return layer.height, layer.width
        return self.grid if self.form == pb.ACTIVATION_FORM_GRID else (1, 1)


def validate_activations_request(request: pb.ActivationsRequest, manifest: Manifest) -> ActivationsSettings:
    """Returns what the request asks for. Refuses a request that does not fit the model, before any work is done.

    Raises:
        InvalidInput: there are no photos or layers or too many, the form is unknown, the grid does not fit a layer, or
            the answer would be too large.
        NotFound: the model has no such layer.
        BundleOutdated: the bundle does not say where its layers are.
    """
    check_count(len(request.images), MAX_PHOTOS, "photos", "images")
    check_count(len(request.layers), MAX_LAYERS, "layers", "layers")
    form = request.form or pb.ACTIVATION_FORM_STRONGEST
    if form not in pb.ActivationForm.values():
        forms = ", ".join(pb.ActivationForm.keys()[1:])
        raise InvalidInput(f"form {form} is unknown; choose one of {forms}", field="form")
    layers = find_layers(request.layers, manifest, "layers")
    grid = _check_grid(request, layers) if form == pb.ACTIVATION_FORM_GRID else (0, 0)
    settings = ActivationsSettings(layers, form, grid)
    photo_bytes = 0
    for layer in layers:
        height, width = settings.size_of(layer)
        photo_bytes += layer.channels * (
            _STRONGEST_BYTES if form == pb.ACTIVATION_FORM_STRONGEST else 4 * height * width
        )
    check_reply(len(request.images) * photo_bytes, "ask for fewer photos or layers at once, or for a grid", "images")
    return settings


def _check_grid(request: pb.ActivationsRequest, layers: Sequence[ReadLayer]) -> tuple[int, int]:
    grid = request.grid_height, request.grid_width
    for field, side in zip(("grid_height", "grid_width"), grid, strict=True):
        if not 1 <= side <= MAX_GRID_SIDE:
            raise InvalidInput(f"{field} is {side}; choose 1 to {MAX_GRID_SIDE}", field=field)
    for layer in layers:
        if layer.name != FEATURES and (layer.height < grid[0] or layer.width < grid[1]):
            raise InvalidInput(
                f"a grid of {grid[0]} x {grid[1]} does not fit {layer.name}, whose maps have "
                f"{layer.height} x {layer.width} units; choose a smaller grid",
                field="grid_height" if layer.height < grid[0] else "grid_width",
            )
    return grid


class LayerValues(NamedTuple):
    """Holds what the answer has for one layer of one photo.

    Attributes:
        values: float32 (C, h, w), C-contiguous.
        rows, columns: the positions of the strongest units, (C,) each; None for the other forms.
    """

    values: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64] | None
    columns: npt.NDArray[np.int64] | None


async def read_activations(
    call: StudyCall, settings: ActivationsSettings, photos: Sequence[npt.NDArray[np.uint8]]
) -> AsyncGenerator[pb.ActivationsResponse, None]:
    """Yields the messages of the answer: photo by photo, layer by layer, large layers in several messages.

    Args:
        photos: inputs of the model, uint8 (H, W, 3) each.

    Raises:
        ServiceError: see `ImageRunner.run`.
    """
    # Sorted, because requests that name the same layers in another order can then share an engine.
    read = sorted((layer for layer in settings.layers if layer.name != FEATURES), key=lambda layer: layer.name)
    plan = ReadingPlan(tuple(layer.reading(settings.reading_form) for layer in read))
    places = {layer.name: place for place, layer in enumerate(read)}
    async with open_runner(call, plan) as runner:
        size = runner.chunk_size
        chunks = (partial(_stack, photos[first : first + size]) for first in range(0, len(photos), size))
        number = 0
        async with aclosing(runner.run(chunks)) as results:
            async for _, chunk in results:
                each = await asyncio.to_thread(_values_of_all, chunk, settings, places)
                for result, values in zip(chunk, each, strict=True):
                    for message in _messages(settings.layers, values):
                        message.image = number
                        message.computation.CopyFrom(runner.computation)
                        message.model.CopyFrom(call.model.identity)
                        if message.photo_ends:
                            message.best.CopyFrom(call.model.class_score(result.probabilities))
                        yield message
                    number += 1


def _stack(photos: Sequence[npt.NDArray[np.uint8]]) -> Chunk:
    return Chunk(np.stack(photos))


def _values_of_all(
    results: Sequence[InferenceResult], settings: ActivationsSettings, places: dict[str, int]
) -> list[list[LayerValues]]:
    return [_values(result, settings, places) for result in results]


def _values(result: InferenceResult, settings: ActivationsSettings, places: dict[str, int]) -> list[LayerValues]:
    """Returns the values of each layer, in the order of the request."""
    strongest = settings.form == pb.ACTIVATION_FORM_STRONGEST
    values = []
    for layer in settings.layers:
        if layer.name == FEATURES:
            nowhere = np.zeros(layer.channels, np.int64) if strongest else None
            values.append(LayerValues(result.features.reshape(-1, 1, 1), nowhere, nowhere))
            continue
        read = result.readings[places[layer.name]]
        if strongest:
            values.append(LayerValues(read.values.reshape(-1, 1, 1), read.rows, read.columns))
        elif settings.form == pb.ACTIVATION_FORM_GRID:
            values.append(LayerValues(pool_to_grid(read.values, *settings.grid), None, None))
        else:
            values.append(LayerValues(read.values, None, None))
    return values


def _messages(layers: Sequence[ReadLayer], values: Sequence[LayerValues]) -> Iterator[pb.ActivationsResponse]:
    """Yields the messages of one photo. The last one says so."""
    for layer, (maps, rows, columns) in zip(layers, values, strict=True):
        count, height, width = maps.shape
        step = max(1, MESSAGE_BYTES // (4 * height * width))
        for first in range(0, count, step):
            part = np.s_[first : first + step]
            data = np.ascontiguousarray(maps[part], "<f4")
            yield pb.ActivationsResponse(
                layer=layer.name,
                first_map=first,
                values=pb.FloatMaps(maps=len(data), height=height, width=width, data=data.tobytes()),
                rows=None if rows is None else rows[part].tolist(),
                columns=None if columns is None else columns[part].tolist(),
                photo_ends=layer is layers[-1] and first + step >= count,
            )
