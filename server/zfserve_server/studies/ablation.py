"""Replaces maps of a layer by a constant: the call `Ablate`. `study_service` calls it.

The network keeps its weights, so later layers meet activations that they were not trained with. That is another
experiment than the paper's table 3, which trains networks without layers.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from zfserve_engines.images.input_image import InputImage
from zfserve_engines.readings.plan import ReadingPlan, Replacement
from zfserve_protos.v1 import zfserve_pb2 as pb

from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.studies.ablation_request import AblationSettings
from zfserve_server.studies.running import Chunk, StudyCall, open_runner


@dataclass(frozen=True)
class SpeakingMaps:
    """Holds the maps that add most to the score of a class.

    Attributes:
        maps: the maps, the one that adds most first.
        attributions: the contribution of each, in logits.
        for_class: the class, with the probability that the worker computed.
    """

    maps: tuple[int, ...]
    attributions: tuple[float, ...]
    for_class: pb.ClassScore


@dataclass(frozen=True)
class Group:
    """Holds maps that are replaced together.

    Attributes:
        attribution: the contribution of its map to the score of a class, in logits; 0 if it was not chosen for one.
    """

    maps: tuple[int, ...]
    attribution: float = 0.0


async def ablate(
    call: StudyCall, settings: AblationSettings, image: InputImage, speaking: SpeakingMaps | None
) -> AsyncGenerator[pb.AblateResponse, None]:
    """Yields a message for each group of maps, in order.

    Args:
        speaking: the maps, where the request asks for those that add most to a class.

    Raises:
        ServiceError: see `ImageRunner.run`.
    """
    layer = settings.layer
    # The photo is read by the engine that also replaces maps, so that only one engine is opened.
    plan = ReadingPlan((layer.reading("strongest"), layer.reading("sums")), layer.tensor, layer.channels)
    async with open_runner(call, plan) as runner:
        untouched = await runner.run_one(image.pixels)
        groups = _choose_groups(settings, untouched, speaking)
        ablation = _Ablation(image.pixels, groups, _values(settings, untouched))
        first = pb.AblateResponse(untouched=untouched.probabilities.tolist())
        if speaking is not None:
            score = call.model.class_score(untouched.probabilities, speaking.for_class.index)
            first.for_class.CopyFrom(score)
        async with aclosing(runner.run(ablation.chunks(runner.chunk_size))) as chunks:
            async for message in ablation.messages(chunks):
                message.layer = layer.name
                message.computation.CopyFrom(runner.computation)
                message.model.CopyFrom(call.model.identity)
                if not message.rank:
                    message.MergeFrom(first)
                yield message


def _choose_groups(
    settings: AblationSettings, untouched: InferenceResult, speaking: SpeakingMaps | None
) -> list[Group]:
    if speaking is not None:
        return [Group((index,), value) for index, value in zip(speaking.maps, speaking.attributions, strict=True)]
    if settings.groups:
        return [Group(maps) for maps in settings.groups]
    highest = np.argsort(-untouched.readings[0].values, kind="stable")[: settings.strongest]
    return [Group((index,)) for index in highest.tolist()]


def _values(settings: AblationSettings, untouched: InferenceResult) -> npt.NDArray[np.float32]:
    """Returns what each map becomes, float32 (C,)."""
    if settings.values is not None:
        return settings.values
    units = settings.layer.height * settings.layer.width
    means: npt.NDArray[np.float32] = untouched.readings[1].values / np.float32(units)
    return means


@dataclass(frozen=True, eq=False)
class _Ablation:
    """Makes the images of an ablation and the messages of their results.

    The photo runs twice for each group: first with the group alone replaced, then with all groups so far. The first
    group is alone in both cases, so it runs once.

    Attributes:
        pixels: the photo, uint8 (H, W, 3).
        values: what each map becomes, float32 (C,).
    """

    pixels: npt.NDArray[np.uint8]
    groups: Sequence[Group]
    values: npt.NDArray[np.float32]

    def chunks(self, size: int) -> Iterator[partial[Chunk]]:
        """Yields functions that make at most `size` images each."""
        runs = 2 * len(self.groups) - 1
        return (partial(self._make, range(first, min(first + size, runs))) for first in range(0, runs, size))

    def _make(self, runs: range) -> Chunk:
        """Makes the images of some runs.

        Run 0 replaces group 0. Runs 2g - 1 and 2g replace group g alone, and together with all groups before it.
        """
        keep = np.ones((len(runs), len(self.values)), np.float32)
        for row, run in zip(keep, runs, strict=True):
            group = (run + 1) // 2
            first = 0 if run % 2 == 0 else group
            for replaced in self.groups[first : group + 1]:
                row[list(replaced.maps)] = 0
        photos = np.broadcast_to(self.pixels, (len(runs), *self.pixels.shape))
        return Chunk(photos, Replacement(keep, (1 - keep) * self.values))

    async def messages(
        self, chunks: AsyncGenerator[tuple[Chunk, Sequence[InferenceResult]], None]
    ) -> AsyncGenerator[pb.AblateResponse, None]:
        """Yields a message for each group once both of its runs are done."""
        run, alone = 0, np.empty(0, np.float32)
        async for _, results in chunks:
            for result in results:
                rank, is_cumulative = (run + 1) // 2, run % 2 == 0
                run += 1
                if rank == 0 or not is_cumulative:
                    alone = result.probabilities
                if is_cumulative:
                    group = self.groups[rank]
                    yield pb.AblateResponse(
                        rank=rank,
                        total=len(self.groups),
                        maps=group.maps,
                        attribution=group.attribution,
                        alone=alone.tolist(),
                        cumulative=result.probabilities.tolist(),
                    )
