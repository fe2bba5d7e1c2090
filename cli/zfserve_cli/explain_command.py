"""`zfserve explain` makes one picture of each photo: which places and which feature maps speak for a class."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from PIL import Image
from zfserve.client import Client
from zfserve.errors import OutOfRange, PermissionDenied, Unimplemented, ZfserveError
from zfserve.explanation import Explanation, ExplanationMethod
from zfserve.requests import LAST
from zfserve.results import Projection
from zfserve_photos.files import find_photos

from zfserve_cli.connection_arguments import add_connection_arguments, add_model_argument
from zfserve_cli.exit_statuses import FAILED, UNUSABLE
from zfserve_cli.explanation_output import Explained, Outcome, print_explanations, write_json
from zfserve_cli.explanation_picture import explanation_picture, open_photo
from zfserve_cli.output_files import output_files
from zfserve_cli.photo_outcomes import summary_status, with_progress
from zfserve_cli.picture_files import NotSaved, write_picture
from zfserve_cli.project_command import add_layer_argument
from zfserve_cli.projection_table import rule_note
from zfserve_cli.service_call import call_service, print_error

MAPS = 6
"""The picture shows this many maps by default, in two rows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="files, folders or quoted patterns such as '**/*.jpg'"
    )
    add_layer_argument(parser)
    parser.add_argument(
        "--class",
        dest="class_name",
        default="",
        metavar="NAME",
        help="class to explain, given by its id or label (default: the most probable class)",
    )
    parser.add_argument(
        "--method",
        choices=get_args(ExplanationMethod),
        default="integrated-gradients",
        help="what the heatmap shows: what each place adds to the score, or Grad-CAM (default: %(default)s)",
    )
    parser.add_argument(
        "--top",
        type=int,
        metavar="N",
        default=MAPS,
        help="number of maps to show that add most to the score; 0 shows none (default: %(default)s)",
    )
    add_model_argument(parser)
    parser.add_argument(
        "--save",
        type=Path,
        metavar="PATH",
        help="picture file to write, or a folder for the pictures of all photos "
        "(default: PHOTO-explained.png in this folder; with --json no picture)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document for each photo, each on its own line (JSON Lines); "
        'a photo that failed has "error" instead of the explanation',
    )
    add_connection_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        photos = find_photos(arguments.photos)
        pictures = _picture_files(photos, arguments)
    except (OSError, ValueError) as error:
        print_error(str(error))
        return UNUSABLE
    return call_service(arguments, lambda client: _explain_all(client, photos, pictures, arguments))


def _picture_files(photos: list[Path], arguments: argparse.Namespace) -> list[Path | None]:
    """Returns the picture file of each photo. None writes no picture. Makes the folder of --save.

    Raises:
        ValueError: --save names one file for several photos, or the photo itself.
        OSError: the folder cannot be made.
    """
    if arguments.save is None and arguments.json:
        return [None for _ in photos]
    words = ["explained", arguments.class_name, "" if arguments.layer == LAST else arguments.layer]
    words.append("" if arguments.method == "integrated-gradients" else arguments.method)
    return [*output_files(photos, arguments.save, words)]


def _explain_all(client: Client, photos: list[Path], pictures: list[Path | None], arguments: argparse.Namespace) -> int:
    outcomes = with_progress(_outcomes(client, photos, pictures, arguments), len(photos), "explaining")
    finished: list[Outcome] = []
    status = None
    try:
        for outcome in outcomes:
            finished.append(outcome)
            if arguments.json:
                write_json(*outcome)
    except NotSaved as error:
        print_error(str(error))
        status = FAILED
    if not arguments.json:
        print_explanations(finished, arguments)
    errors = [answer for _, answer in finished if isinstance(answer, ZfserveError)]
    return status or summary_status(errors, len(photos))


def _outcomes(
    client: Client, photos: list[Path], pictures: list[Path | None], arguments: argparse.Namespace
) -> Iterator[Outcome]:
    for photo, picture in zip(photos, pictures, strict=True):
        try:
            yield photo, _explain(client, photo, picture, arguments)
        except ZfserveError as error:
            yield photo, error


def _explain(client: Client, photo: Path, picture: Path | None, arguments: argparse.Namespace) -> Explained:
    """Asks for the heatmap and the maps of one photo, and writes its picture.

    Raises:
        ZfserveError: the call failed.
        NotSaved: the picture cannot be written, or the photo cannot be read for it.
    """
    model, version = arguments.model
    explanation = client.explain(
        photo,
        layer=arguments.layer,
        class_name=arguments.class_name,
        method=arguments.method,
        model=model,
        version=version,
    )
    maps, note = _leading_maps(client, photo, explanation, arguments.top) if arguments.top else ((), "")
    replaced = picture is not None and picture.exists()
    if picture is not None:
        write_picture(explanation_picture(_opened(photo), photo.name, explanation, maps, note), picture)
    return Explained(explanation, maps, note, picture, replaced)


def _opened(photo: Path) -> Image.Image:
    """Opens a photo that the server has decoded already.

    Raises:
        NotSaved: the photo cannot be decoded here.
    """
    try:
        return open_photo(photo)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise NotSaved(f"{photo} cannot be drawn: {getattr(error, 'strerror', None) or error}") from error


def _leading_maps(
    client: Client, photo: Path, explanation: Explanation, count: int
) -> tuple[tuple[Projection, ...], str]:
    """Returns the projections of the maps that add most to the class, and a note.

    The heatmap is worth showing without them. So if this network, this layer or this caller has none, the note says
    why.
    """
    try:
        maps = tuple(
            client.project(
                photo,
                explanation.layer,
                model=explanation.model.name,
                version=explanation.model.version,
                strongest=count,
                for_class=explanation.for_class.class_id or explanation.for_class.label,
            )
        )
    except (OutOfRange, PermissionDenied, Unimplemented) as error:
        return (), f"no maps: {error.message}"
    return maps, rule_note(maps)
