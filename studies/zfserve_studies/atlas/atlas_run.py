"""Runs an atlas from its photos to its pages: the scan, the tiles, `atlas.json`, the sheets and the HTML page."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from zfserve.client import Client
from zfserve.model_description import ModelDescription
from zfserve_cli.exit_statuses import FAILED, OK
from zfserve_cli.service_call import print_error

from zfserve_studies.atlas.atlas_document import ATLAS_FILE, Atlas, atlas_document, finish
from zfserve_studies.atlas.filters import write_filters
from zfserve_studies.atlas.merging import read_shards
from zfserve_studies.atlas.pages import AtlasPainter
from zfserve_studies.atlas.question import AtlasQuestion, Photo, batches, find_layer, find_maps, find_photos
from zfserve_studies.atlas.scan import Scanner, ScanState, require_maps, write_state
from zfserve_studies.atlas.tiles import TileMaker, Wanted, tiles_of
from zfserve_studies.patience import Patience
from zfserve_studies.progress import progress_bar
from zfserve_studies.run_folder import CannotContinue, RunFolder, json_bytes, photos_digest

PAGE_FILE = "atlas.html"


@dataclass(frozen=True)
class AtlasOptions:
    """Holds the options that an atlas and a merge share.

    Attributes:
        images: the folder of the photos.
        output: the folder of the atlas.
        model: the name and the version of the model, each None for the default.
        patches: True to show the parts of the photos.
        weights: a file of weights whose first filters are drawn, or None.
        json: True to print the result as JSON.
        patience_s: the longest time to wait for a server that is away, in seconds.
    """

    images: Path
    output: Path
    model: tuple[str | None, str | None]
    patches: bool
    weights: Path | None
    json: bool
    patience_s: float

    def patience(self) -> Patience:
        return Patience(print_error, self.patience_s)

    def describe(self, client: Client) -> ModelDescription:
        name, version = self.model
        return self.patience().call(lambda: client.describe(model=name, version=version))


def run_atlas(
    client: Client,
    options: AtlasOptions,
    layer: str,
    maps: str | None,
    for_class: tuple[str | None, int],
    shard: tuple[int, int] | None,
) -> int:
    """Makes an atlas, or reads one shard of it. Returns the exit status.

    Args:
        maps: the maps as the user wrote them, or None for all.
        for_class: the class that photos are ranked for or None, and the number of maps of each photo.

    Raises:
        CannotContinue: the folder holds another run, or something has changed since the run began.
        ZfserveError: the service failed.
        OSError: a file cannot be read or written.
        NotSaved: a picture cannot be written.
    """
    description = options.describe(client)
    chosen = find_layer(description, layer)
    class_name, class_maps = for_class
    question = AtlasQuestion(
        description.model, chosen, find_maps(maps, chosen), class_name, class_maps if class_name else 0, shard
    )
    require_maps(question)
    photos = find_photos(options.images)
    run = RunFolder.begin(options.output, question.plan(_digest(photos, options.images)))
    part = photos if shard is None else photos[shard[0] :: shard[1]]
    with progress_bar(f"reading {chosen.name}") as progress:
        scanner = Scanner(client, question, options.patience())
        state = scanner.scan(batches(part, lambda photo: photo.file.stat().st_size), run, progress)
    if shard is not None:
        return _finish_shard(run, state, options)
    return _finish_atlas(client, options, description, question, run, state)


def merge_atlas(client: Client, options: AtlasOptions, folders: Sequence[Path]) -> int:
    """Merges shards and makes the pictures, as one run over all photos makes them. Returns the exit status.

    Raises:
        CannotContinue: shards are missing or do not belong together, or the photos or the model have changed.
        ZfserveError: the service failed.
        OSError: a file cannot be read or written.
        NotSaved: a picture cannot be written.
    """
    plan, state = read_shards(folders)
    description = options.describe(client)
    if description.model.fingerprint != plan["model"]["fingerprint"]:
        raise CannotContinue(
            f"the shards were read with other weights than {description.model.name} {description.model.version}; "
            "name their model with --model"
        )
    photos = find_photos(options.images)
    if (digest := _digest(photos, options.images)) != plan["photos"]:
        raise CannotContinue(f"the photos in {options.images} have changed since the shards were read; put them back")
    wanted = plan["options"]
    question = AtlasQuestion(
        description.model,
        find_layer(description, wanted["layer"]),
        tuple(wanted["maps"]),
        wanted["for_class"],
        wanted["class_maps"],
    )
    run = RunFolder.begin(options.output, question.plan(digest))
    write_state(run, state)
    _finish_atlas(client, options, description, question, run, state)
    return OK  # the photos that were skipped are no fault of the merge, and no new try would read them


def _digest(photos: Sequence[Photo], root: Path) -> str:
    return photos_digest([photo.file for photo in photos], root)


def _finish_shard(run: RunFolder, state: ScanState, options: AtlasOptions) -> int:
    _print_skipped(state)
    if options.json:
        sys.stdout.write(json_bytes(state.document()).decode())
    else:
        Console().print(f"read {state.photos:,} photos; merge the shards: zfserve atlas merge {run.folder} ...")
    return OK if state.photos else FAILED


def _finish_atlas(
    client: Client,
    options: AtlasOptions,
    description: ModelDescription,
    question: AtlasQuestion,
    run: RunFolder,
    state: ScanState,
) -> int:
    """Makes the tiles and the pages, and prints a summary. Returns the exit status."""
    projections = description.projection_available and not description.projection_obstacle
    wanted = Wanted(projections, options.patches or not projections, description.input)
    tiles = list(tiles_of(state.strongest))
    with progress_bar("projecting" if projections else "cutting patches") as progress:
        TileMaker(client, question, options.images, wanted, options.patience()).make(tiles, run, progress)
    atlas = finish(question, state, projections, wanted.patches)
    document = json_bytes(atlas_document(atlas))
    painter = AtlasPainter(atlas, run)
    sheets = painter.write_sheets()
    filters = write_filters(run.folder, options.weights, description)
    _write_page(run, painter)
    run.write(ATLAS_FILE, document)
    if options.json:
        sys.stdout.write(document.decode())
    else:
        _print_summary(atlas, run.folder, len(sheets), filters)
    _print_skipped(state)
    return OK if not state.skipped else FAILED


def _write_page(run: RunFolder, painter: AtlasPainter) -> None:
    """Writes the HTML page part by part, and gives it its name at the end."""
    file = run.folder / PAGE_FILE
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8", errors="replace") as opened:
            opened.writelines(painter.html())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _print_summary(atlas: Atlas, folder: Path, sheets: int, filters: str) -> None:
    console = Console()
    name, layer = atlas.question.model.name, atlas.question.layer.name

    def say(text: str) -> None:
        console.print(escape(text), soft_wrap=True, highlight=False)

    say(f"{name} {layer}: {len(atlas.strongest.maps)} maps, {atlas.state.photos:,} photos, ranked by {atlas.by}")
    say(f"dead maps: {_listed([str(index) for index in atlas.dead])}")
    say("near-duplicates: " + _listed([f"{first} and {second}" for first, second, _ in atlas.duplicates]))
    if not atlas.projections:
        say("no projections: this network or this server cannot make them; the patches are there")
    if filters:
        say(filters)
    say(f"{folder / PAGE_FILE}, {sheets} sheets beside it, {folder / ATLAS_FILE}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12]) or "none"
    return f"{len(names)} ({shown}{', ...' if len(names) > 12 else ''})" if names else shown


def _print_skipped(state: ScanState) -> None:
    for name, reason in state.skipped[:10]:
        print_error(f"{name}: {reason}")
    if len(state.skipped) > 10:
        print_error(f"and {len(state.skipped) - 10} more photos; atlas.json has all of them")
