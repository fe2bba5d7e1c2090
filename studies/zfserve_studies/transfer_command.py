"""`zfserve transfer` measures how well the features of each layer tell new classes apart (table 7, figure 9)."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from zfserve.client import Client
from zfserve.model_description import ModelDescription
from zfserve_cli.exit_statuses import FAILED, OK, UNUSABLE
from zfserve_cli.picture_files import NotSaved
from zfserve_cli.service_call import call_service, print_error
from zfserve_photos.files import list_photo_files

from zfserve_studies.figures.style import save_figure
from zfserve_studies.figures.transfer_figure import transfer_figure
from zfserve_studies.patience import Patience
from zfserve_studies.progress import progress_bar, say
from zfserve_studies.run_folder import CannotContinue
from zfserve_studies.study_arguments import add_service_arguments, positive
from zfserve_studies.transfer.classifier import COST
from zfserve_studies.transfer.data_set import DataSet, DataUnusable, Fold, draw_folds, read_data_set, used_photos
from zfserve_studies.transfer.duplicates import LEAST_CORRELATION, near_duplicates, thumbnails
from zfserve_studies.transfer.experiment import Point, measure_layer, readable_part, without_duplicates
from zfserve_studies.transfer.features import FEATURES, FeatureStore, ReadLayer

SHOWN_DUPLICATES = 10


@dataclass(frozen=True)
class Duplicates:
    """Holds near-duplicates.

    Attributes:
        pairs: pairs of photos of the data, as indices.
        foreign: photos of the data that are near-duplicates of photos the network has learned from.
        told: the two files and their correlation, for each pair of either kind.
    """

    pairs: list[tuple[int, int]] = field(default_factory=list)
    foreign: frozenset[int] = frozenset()
    told: list[tuple[str, str, float]] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder with a folder of photos for each class"
    )
    parser.add_argument("--layers", metavar="LAYER,...", help="layers (default: every stage, and features)")
    parser.add_argument(
        "--grid", type=positive, default=4, metavar="N", help="maps are pooled to N x N cells (default: %(default)d)"
    )
    parser.add_argument(
        "--train",
        type=_counts,
        default=(1, 6, 15, 30),
        metavar="N,...",
        help="photos of each class to learn from (default: 1,6,15,30)",
    )
    parser.add_argument(
        "--test", type=positive, default=50, metavar="N", help="photos of each class to test (default: %(default)d)"
    )
    parser.add_argument("--folds", type=positive, default=5, metavar="N", help="number of folds (default: 5)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the folds (default: 0)")
    parser.add_argument(
        "--trained-on",
        type=Path,
        metavar="DIR",
        help="photos that the network has learned from; their near-duplicates are not tested",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("transfer-features"),
        metavar="DIR",
        help="folder of the features; a run that was killed continues from it (default: %(default)s)",
    )
    parser.add_argument(
        "--save", type=Path, metavar="PNG", help="picture to write (default: transfer.png; with --json none)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_service_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        data = read_data_set(arguments.data)
        folds = draw_folds(data, arguments.folds, max(arguments.train), arguments.test, abs(arguments.seed))
        others = _foreign_photos(arguments.trained_on)
        picture = _picture(arguments)
    except (OSError, ValueError, DataUnusable) as error:
        print_error(str(error))
        return UNUSABLE
    duplicates = _find_duplicates(data, folds, others)
    folds = without_duplicates(folds, duplicates.pairs, duplicates.foreign)
    return call_service(arguments, lambda client: _transfer(client, data, folds, duplicates, picture, arguments))


def _foreign_photos(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    if not (found := list_photo_files(folder)):
        raise DataUnusable(f"--trained-on {folder} has no photos; name the folder that the network has learned from")
    return found


def _picture(arguments: argparse.Namespace) -> Path | None:
    if arguments.save is None and arguments.json:
        return None
    save: Path = arguments.save or Path("transfer.png")
    if save.suffix.lower() != ".png":
        raise ValueError(f"--save {save} is no PNG file; name one with the suffix .png")
    save.parent.mkdir(parents=True, exist_ok=True)
    return save


def _find_duplicates(data: DataSet, folds: list[Fold], others: list[Path]) -> Duplicates:
    used = used_photos(folds)
    photos = [data.photos[at] for at in used]
    with progress_bar("comparing photos", len(photos)) as progress:
        own = thumbnails(photos, progress)
    with progress_bar("comparing with the photos learned from", len(others)) as progress:
        foreign = near_duplicates(own, thumbnails(others, progress)) if others else []
    pairs = near_duplicates(own, own)
    told = [(str(photos[one]), str(photos[other]), value) for one, other, value in pairs]
    told += [(str(photos[one]), str(others[other]), value) for one, other, value in foreign]
    return Duplicates(
        [(int(used[one]), int(used[other])) for one, other, _ in pairs],
        frozenset(int(used[one]) for one, _, _ in foreign),
        told,
    )


def _transfer(
    client: Client,
    data: DataSet,
    folds: list[Fold],
    duplicates: Duplicates,
    picture: Path | None,
    arguments: argparse.Namespace,
) -> int:
    name, version = arguments.model
    model = client.describe(model=name, version=version)
    store = FeatureStore(client, model, arguments.cache, Patience(say))
    try:
        results, layers = _measure(store, data, folds, arguments)
        if picture is not None:
            save_figure(transfer_figure(results, len(data.classes)), picture)
    except (NotSaved, CannotContinue, DataUnusable) as error:
        print_error(str(error))
        return FAILED
    except OSError as error:
        print_error(f"{error.filename or arguments.cache} cannot be used: {error.strerror or error}")
        return FAILED
    for photo, sentence in store.unreadable.items():
        say(f"left out {photo}: {sentence}")
    if arguments.json:
        document = _document(model, data, results, layers, duplicates, arguments)
        document["unreadable"] = [str(photo) for photo in store.unreadable]
        if picture is not None:
            document["picture"] = str(picture)
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        return OK
    _print(results, len(data.classes), duplicates)
    if picture is not None:
        say(f"saved {picture}")
    return OK


def _measure(
    store: FeatureStore, data: DataSet, folds: list[Fold], arguments: argparse.Namespace
) -> tuple[dict[str, list[Point]], list[ReadLayer]]:
    used = [int(at) for at in used_photos(folds)]
    photos = [data.photos[at] for at in used]
    layers = store.layers(photos, _layer_names(store.model, arguments.layers), arguments.grid)
    with progress_bar("reading features", len(photos)) as progress:
        digests = store.fill(photos, layers, progress)
    readable = [at for at in used if data.photos[at] in digests]
    rows = {at: row for row, at in enumerate(readable)}
    kept = [readable_part(fold, frozenset(rows)) for fold in folds]
    done, total = 0, len(layers) * len(folds) * len(arguments.train)
    results = {}
    with progress_bar("learning", total) as progress:

        def step() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        for layer in layers:
            features = store.load(layer, [digests[data.photos[at]] for at in readable])
            results[layer.name] = measure_layer(features, rows, kept, arguments.train, step)
    return results, layers


def _layer_names(model: ModelDescription, chosen: str | None) -> list[str]:
    """Returns the layers of --layers, or every stage and the features."""
    if chosen:
        return [each.strip() for each in chosen.split(",") if each.strip()]
    stages = [*dict.fromkeys(layer.stage for layer in model.layers if layer.stage)] or ["last"]
    if not model.layers:
        stages = []
    return [*stages[-15:], FEATURES] if model.feature_width else stages


def _document(
    model: ModelDescription,
    data: DataSet,
    results: dict[str, list[Point]],
    layers: list[ReadLayer],
    duplicates: Duplicates,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    return {
        "model": asdict(model.model),
        "engine": {"name": model.engine.name, "precision": model.engine.precision},
        "classes": data.classes,
        "folds": arguments.folds,
        "seed": arguments.seed,
        "classifier": {"loss": "hinge", "cost": COST},
        "layers": {
            layer.name: {
                "grid": layer.grid,
                "accuracy": [
                    {"photos": each.photos, "mean": each.mean, "deviation": each.deviation, "folds": each.folds}
                    for each in results[layer.name]
                ],
            }
            for layer in layers
        },
        "near_duplicates": {
            "least_correlation": LEAST_CORRELATION,
            "pairs": [{"photo": one, "of": other, "correlation": value} for one, other, value in duplicates.told],
        },
    }


def _print(results: dict[str, list[Point]], classes: int, duplicates: Duplicates) -> None:
    points = next(iter(results.values()))
    heads = [f"{point.photos} photo{'s' if point.photos > 1 else ''}" for point in points]
    table = Table("layer", *heads, box=None, header_style="bold")
    for layer, row in results.items():
        cells = [
            f"{100 * p.mean:.1f}%" + (f" ± {100 * p.deviation:.1f}" if p.deviation is not None else "") for p in row
        ]
        table.add_row(escape(layer), *cells)
    console = Console()
    console.print(table)
    console.print(
        f"The mean over {classes} classes, with the deviation over folds. Chance is {100 / classes:.1f}%.",
        highlight=False,
        soft_wrap=True,
    )
    if duplicates.told:
        say(f"{len(duplicates.told)} pairs of near-duplicates; they are never in both parts:")
        for one, other, value in duplicates.told[:SHOWN_DUPLICATES]:
            say(f"  {one} and {other} ({value:.3f})")
        if len(duplicates.told) > SHOWN_DUPLICATES:
            say("  --json lists all of them")


def _counts(text: str) -> tuple[int, ...]:
    """Parses whole numbers above 0, separated by commas, and returns them rising."""
    return tuple(sorted({positive(each.strip()) for each in text.split(",")}))
