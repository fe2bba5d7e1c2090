"""`zfserve correspondence` measures if parts of an object mean the same in different photos (table 1)."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from zfserve.client import Client
from zfserve_cli.exit_statuses import FAILED, OK, UNUSABLE
from zfserve_cli.explanation_picture import open_photo
from zfserve_cli.picture_files import NotSaved
from zfserve_cli.service_call import call_service, print_error
from zfserve_photos.files import find_photos

from zfserve_studies.correspondence.measure import SignChange
from zfserve_studies.correspondence.parts import PartsUnusable, PhotoParts, random_boxes, read_parts
from zfserve_studies.correspondence.study import RANDOM, Correspondence, CorrespondenceStudy
from zfserve_studies.figures.correspondence_figure import correspondence_figure
from zfserve_studies.figures.style import save_figure
from zfserve_studies.patience import Patience
from zfserve_studies.progress import progress_bar, say
from zfserve_studies.run_folder import CannotContinue
from zfserve_studies.study_arguments import add_service_arguments, picture_file

CONTROLS = 10
"""Each photo gets this many random boxes by default. The paper does not say how many it took."""

FEATURES = "features"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="two or more files, folders or quoted patterns such as '**/*.jpg'"
    )
    parser.add_argument(
        "--parts",
        type=Path,
        required=True,
        metavar="FILE",
        help='boxes in the photos as sent: {"photo.jpg": {"object": [LEFT, TOP, RIGHT, BOTTOM], "nose": [...]}}',
    )
    parser.add_argument(
        "--layers", metavar="LAYER,...", help="layers or stages (default: last,features; last without features)"
    )
    parser.add_argument(
        "--controls",
        type=_count,
        default=CONTROLS,
        metavar="N",
        help="random boxes in the object of each photo, the control (default: %(default)d)",
    )
    parser.add_argument("--seed", type=_count, default=0, metavar="N", help="seed of the random boxes (default: 0)")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="picture file to write (default: correspondence.png; with --json none)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_service_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        photos = find_photos(arguments.photos)
        if len(photos) < 2:
            raise PartsUnusable("one photo has no pairs; name at least two photos")
        opened = [_opened(photo) for photo in photos]
        parts = read_parts(arguments.parts, photos, [photo.size for photo in opened])
        picture = picture_file(photos, arguments, "correspondence.png")
    except (OSError, ValueError, PartsUnusable) as error:
        print_error(str(error))
        return UNUSABLE
    return call_service(arguments, lambda client: _measure(client, photos, opened, parts, picture, arguments))


def _opened(photo: Path) -> Image.Image:
    """Returns the upright photo, mode RGB. Raises PartsUnusable if it cannot be read."""
    try:
        return open_photo(photo).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise PartsUnusable(f"{photo} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _measure(
    client: Client,
    photos: list[Path],
    opened: list[Image.Image],
    parts: list[PhotoParts],
    picture: Path | None,
    arguments: argparse.Namespace,
) -> int:
    name, version = arguments.model
    model = client.describe(model=name, version=version)
    chosen = arguments.layers or ("last,features" if model.feature_width else "last")
    layers = [each.strip() for each in chosen.split(",") if each.strip()]
    study = CorrespondenceStudy(client, model, layers, Patience(say))
    controls = random_boxes(parts, arguments.controls, arguments.seed)
    try:
        with progress_bar("masking parts") as progress:
            result = study.measure(opened, parts, controls, progress)
        if picture is not None:
            save_figure(correspondence_figure(result, [photo.name for photo in photos], opened, parts), picture)
    except (NotSaved, CannotContinue) as error:
        print_error(str(error))
        return FAILED
    if arguments.json:
        document = {
            "model": asdict(model.model),
            "computation": asdict(result.computation),
            "photos": [str(photo) for photo in photos],
            "controls": arguments.controls,
            "seed": arguments.seed,
            "layers": {
                layer: {part: asdict(each) for part, each in changes.items()}
                for layer, changes in result.changes.items()
            },
        }
        if picture is not None:
            document["picture"] = str(picture)
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        return OK
    _print(result)
    if picture is not None:
        say(f"saved {picture}")
    return OK


def _print(result: Correspondence) -> None:
    table = Table("part", *(escape(layer) for layer in result.changes), box=None, header_style="bold")
    for part in next(iter(result.changes.values())):
        cells = [changes[part] for changes in result.changes.values()]
        texts = [f"{c.mean:.3f}" + (f" ± {c.deviation:.3f}" if c.deviation is not None else "") for c in cells]
        table.add_row(escape(part), *texts)
    console = Console()
    console.print(table)
    for layer, changes in result.changes.items():
        console.print(escape(_sentence(layer, changes)), highlight=False, soft_wrap=True)


def _sentence(layer: str, changes: dict[str, SignChange]) -> str:
    """Returns a sentence that says if the parts change less than the random boxes, as in the paper."""
    control = changes.get(RANDOM)
    if control is None:
        return f"{layer}: there is no control; compare with random boxes by --controls."
    named = {part: each for part, each in changes.items() if part != RANDOM}
    lower = [part for part, each in named.items() if each.mean < control.mean]
    if len(lower) == len(named):
        return f"{layer}: every part changes the features more alike than random boxes do, as in the paper."
    return (
        f"{layer}: {len(lower)} of {len(named)} parts change the features more alike than random boxes do. "
        "In the paper all do."
    )


def _count(text: str) -> int:
    """Parses a whole number from 0. Raises ArgumentTypeError if it is none."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)
