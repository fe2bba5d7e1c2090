"""Reads the strongest units of all photos from the service. A scan that was killed continues at its last checkpoint.

The photos are cut into the same batches each time, and the answers are taken in their order.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from zfserve.client import Client
from zfserve.errors import InvalidInput
from zfserve.studies import Computation

from zfserve_studies.atlas.question import AtlasQuestion, Photo
from zfserve_studies.atlas.strongest import Strongest, Unit
from zfserve_studies.patience import Patience
from zfserve_studies.run_folder import CannotContinue, RunFolder, json_bytes, require_same_model

SCAN_FILE = "scan.json"

IN_FLIGHT = 4
"""This many requests are in flight. A server takes 8 studies at once, and others may want some."""

CHECKPOINT_BATCHES = 64
"""After this many batches the state is written: about every 1,000 photos."""


@dataclass
class ScanState:
    """Holds what a scan has found so far.

    Attributes:
        strongest: the best units of each map.
        batches: the number of batches that are done.
        photos: the number of photos that were read.
        skipped: the name of each photo that cannot be read, and why.
        computed: how activations were computed, such as "int8 on openvino", sorted.
        finished: True if all batches are done.
    """

    strongest: Strongest
    batches: int = 0
    photos: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    finished: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "batches": self.batches,
            "photos": self.photos,
            "skipped": [list(each) for each in self.skipped],
            "computed": self.computed,
            "finished": self.finished,
            "maps": self.strongest.document(),
        }

    def add_computation(self, computed: str) -> None:
        """Adds how an answer was computed.

        Raises:
            CannotContinue: the precision has changed, so that values cannot be compared.
        """
        if computed in self.computed:
            return
        if self.computed and self.computed[0].split()[0] != computed.split()[0]:
            raise CannotContinue(
                f"the photos were read in {self.computed[0]}, and now in {computed}; "
                "serve with one --precision, and start again in another folder"
            )
        self.computed = sorted([*self.computed, computed])


def read_state(run: RunFolder) -> ScanState | None:
    """Returns the state of a scan, or None if it has not begun.

    Raises:
        CannotContinue: the file is damaged or cannot be read.
    """
    file = run.folder / SCAN_FILE
    try:
        content = run.read(SCAN_FILE)
        if content is None:
            return None
        document = json.loads(content)
        return ScanState(
            Strongest.of_document(document["maps"]),
            document["batches"],
            document["photos"],
            [(name, reason) for name, reason in document["skipped"]],
            document["computed"],
            document["finished"],
        )
    except OSError as error:
        raise CannotContinue(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CannotContinue(f"{file} is damaged; delete {run.folder}, and start again") from error


def write_state(run: RunFolder, state: ScanState) -> None:
    """Writes the state in one step.

    Raises:
        OSError: it cannot be written.
    """
    run.write(SCAN_FILE, json_bytes(state.document()))


@dataclass
class _Read:
    """Holds what was read of one batch: what each photo offers, the skipped photos, and how it was computed."""

    offers: list[Callable[[Strongest], None]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    computed: set[str] = field(default_factory=set)
    photos: int = 0


class Scanner:
    """Reads batches of photos.

    Args:
        client: the client of the service. Several threads call it.
        patience: waits for a server that restarts.
    """

    def __init__(self, client: Client, question: AtlasQuestion, patience: Patience) -> None:
        self._client = client
        self._question = question
        self._patience = patience

    def scan(
        self, batches: Sequence[Sequence[Photo]], run: RunFolder, progress: Callable[[int, int | None], None]
    ) -> ScanState:
        """Returns the state after all batches. It continues where the run has stopped.

        Raises:
            CannotContinue: the model or its precision has changed, or the state is damaged.
            ZfserveError: the service failed.
            OSError: the state cannot be written.
        """
        state = read_state(run) or ScanState(Strongest(self._question.maps))
        if state.finished:
            return state
        total = sum(map(len, batches))
        for read in self._results(batches[state.batches :]):
            for offer in read.offers:
                offer(state.strongest)
            for computed in sorted(read.computed):
                state.add_computation(computed)
            state.skipped += read.skipped
            state.photos += read.photos
            state.batches += 1
            progress(state.photos + len(state.skipped), total)
            if state.batches % CHECKPOINT_BATCHES == 0:
                write_state(run, state)
        state.finished = True
        write_state(run, state)
        return state

    def _results(self, batches: Sequence[Sequence[Photo]]) -> Iterator[_Read]:
        """Yields the result of each batch in their order, while a few later ones are in flight."""
        threads = ThreadPoolExecutor(IN_FLIGHT)
        pending: deque[Future[_Read]] = deque()
        try:
            for batch in batches:
                if len(pending) == IN_FLIGHT:
                    yield pending.popleft().result()
                pending.append(threads.submit(self._read, batch))
            while pending:
                yield pending.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)

    def _read(self, batch: Sequence[Photo]) -> _Read:
        read = _Read()
        contents: list[tuple[Photo, bytes, str]] = []
        for photo in batch:
            try:
                contents.append((photo, *photo.read()))
            except OSError as error:
                read.skipped.append((photo.name, error.strerror or "it cannot be read"))
        ask = self._ask_activations if self._question.for_class is None else self._ask_class
        try:
            parts = [self._patience.call(lambda: ask(contents))] if contents else []
        except InvalidInput as error:
            # One photo spoils the request of all, so each is asked for alone.
            parts = self._one_by_one(contents, read, ask) if len(contents) > 1 else []
            if not parts and len(contents) == 1:
                read.skipped.append((contents[0][0].name, error.message))
        for part in parts:
            read.offers += part.offers
            read.computed |= part.computed
            read.photos += part.photos
        return read

    def _one_by_one(
        self,
        contents: Sequence[tuple[Photo, bytes, str]],
        read: _Read,
        ask: Callable[[Sequence[tuple[Photo, bytes, str]]], _Read],
    ) -> list[_Read]:
        parts = []
        for one in contents:
            try:
                parts.append(self._patience.call(partial(ask, [one])))
            except InvalidInput as error:
                read.skipped.append((one[0].name, error.message))
        return parts

    def _ask_activations(self, contents: Sequence[tuple[Photo, bytes, str]]) -> _Read:
        question, read = self._question, _Read()
        results = self._client.activations(
            [content for _, content, _ in contents],
            question.layer.name,
            model=question.model.name,
            version=question.model.version,
        )
        for result in results:
            require_same_model(question.model, result.model)
            read.computed.add(_text(result.computation))
            photo, _, digest = contents[result.image]
            layer = result.layers[question.layer.name]
            values = np.asarray(layer.values)
            read.offers.append(
                partial(
                    Strongest.offer,
                    photo=photo.name,
                    digest=digest,
                    values=values,
                    rows=layer.rows,
                    columns=layer.columns,
                )
            )
            read.photos += 1
        return read

    def _ask_class(self, contents: Sequence[tuple[Photo, bytes, str]]) -> _Read:
        """Asks the worker which maps add most to the class. Its pictures are not kept."""
        question, read = self._question, _Read()
        for photo, content, digest in contents:
            results = self._client.project(
                content,
                question.layer.name,
                strongest=question.class_maps,
                for_class=question.for_class,
                model=question.model.name,
                version=question.model.version,
            )
            for each in results:
                require_same_model(question.model, each.model)
                if each.attribution is None or each.unit is None or each.map not in question.maps:
                    continue
                unit = Unit(-each.attribution, digest, photo.name, each.unit.row, each.unit.column, each.activation)
                read.offers.append(partial(Strongest.add, index=each.map, unit=unit))
            read.computed.add(_text(WORKER))
            read.photos += 1
        return read


WORKER = Computation("fp32", "the worker")
"""Attributions are computed in PyTorch."""


def require_maps(question: AtlasQuestion) -> None:
    """Checks that the number of maps for a class fits the layer.

    Raises:
        CannotContinue: the layer has fewer maps.
    """
    if question.for_class is not None and not 1 <= question.class_maps <= question.layer.channels:
        raise CannotContinue(
            f"--class-maps is {question.class_maps}, and {question.layer.name} has {question.layer.channels} maps; "
            f"give 1 to {question.layer.channels}"
        )


def _text(computation: Computation) -> str:
    return f"{computation.precision} on {computation.engine}"
