"""`zfserve occlude` slides a square over photos and shows what the network says (Zeiler & Fergus, figure 7)."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from rich.console import Console
from rich.markup import escape
from zfserve.client import Client
from zfserve.errors import ZfserveError
from zfserve.occlusion import MID_GREY, Blur, Fill
from zfserve_cli.exit_statuses import FAILED, UNUSABLE
from zfserve_cli.explanation_picture import open_photo
from zfserve_cli.output_files import output_files
from zfserve_cli.photo_outcomes import error_document, print_photo_errors, summary_status
from zfserve_cli.picture_files import NotSaved, saving
from zfserve_cli.service_call import call_service, print_error
from zfserve_photos.files import find_photos

from zfserve_studies.figures.occlusion_figure import occlusion_figure
from zfserve_studies.figures.style import save_figure
from zfserve_studies.occlusion.document import occlusion_document
from zfserve_studies.occlusion.page import occlusion_page
from zfserve_studies.occlusion.references import AtlasReferences
from zfserve_studies.occlusion.study import OccludedPhoto, OcclusionOptions, OcclusionStudy
from zfserve_studies.occlusion.text import summary_text, title_text
from zfserve_studies.patience import Patience
from zfserve_studies.photo_by_photo import photo_by_photo
from zfserve_studies.progress import progress_bar, say
from zfserve_studies.run_folder import CannotContinue, write_atomically
from zfserve_studies.study_arguments import add_service_arguments

PAGE_SUFFIX = ".html"


class Files(NamedTuple):
    """Names the files of one photo. None writes none."""

    picture: Path | None = None
    page: Path | None = None


@dataclass(frozen=True)
class Finished:
    """Holds an occluded photo, and the files that show it."""

    result: OccludedPhoto
    files: Files


Outcome = tuple[Path, Finished | ZfserveError]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="files, folders or quoted patterns such as '**/*.jpg'"
    )
    parser.add_argument(
        "--size", type=_whole, metavar="PIXELS", help="side of the square (default: a quarter of the shorter side)"
    )
    parser.add_argument(
        "--stride",
        type=_whole,
        metavar="PIXELS",
        help="distance between neighbouring places (default: a quarter of the square)",
    )
    parser.add_argument(
        "--fill",
        type=fill,
        default=MID_GREY,
        metavar="FILL",
        help="grey (128,128,128), RED,GREEN,BLUE from 0 to 255, mean (the photo's mean colour), blur or blur:SIGMA "
        "(default: grey)",
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        default="",
        metavar="NAME",
        help="class whose probability is shown, given by its id or label (default: the most probable class)",
    )
    parser.add_argument(
        "--layer", default="", help="layer or stage of the map (default: the last stage, if one can be read)"
    )
    parser.add_argument("--map", type=int, metavar="M", help="map whose activity is shown (default: the strongest)")
    parser.add_argument(
        "--atlas",
        type=Path,
        metavar="DIR",
        help="folder of an atlas of the same model and layer; it adds the map's projections from other photos",
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="PATH",
        help="picture file to write, or a folder; the page is written beside it "
        "(default: PHOTO-occluded.png and PHOTO-occluded.html in this folder; with --json no files)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document for each photo, each on its own line (JSON Lines); "
        'a photo that failed has "error" instead',
    )
    add_service_arguments(parser)


def fill(text: str) -> Fill:
    """Parses the fill of the square.

    Raises:
        ArgumentTypeError: there is no such fill.
    """
    name, _, rest = text.partition(":")
    try:
        if text == "mean":
            return "mean"
        if text == "grey":
            return MID_GREY
        if name == "blur":
            return Blur(float(rest)) if rest else Blur()
        red, green, blue = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not grey, RED,GREEN,BLUE, mean, blur or blur:SIGMA") from None
    return red, green, blue


def run(arguments: argparse.Namespace) -> int:
    try:
        photos = find_photos(arguments.photos)
        files = _files(photos, arguments)
    except (OSError, ValueError) as error:
        print_error(str(error))
        return UNUSABLE
    return call_service(arguments, lambda client: _occlude_all(client, photos, files, arguments))


def _files(photos: list[Path], arguments: argparse.Namespace) -> list[Files]:
    """Returns the files of each photo. Raises ValueError or OSError as `output_files` does."""
    if arguments.save is None and arguments.json:
        return [Files() for _ in photos]
    words = ["occluded", arguments.class_name, arguments.layer, "" if arguments.map is None else f"map{arguments.map}"]
    pictures = output_files(photos, arguments.save, words)
    return [Files(picture, picture.with_suffix(PAGE_SUFFIX)) for picture in pictures]


def _occlude_all(client: Client, photos: list[Path], files: list[Files], arguments: argparse.Namespace) -> int:
    name, version = arguments.model
    model = client.describe(model=name, version=version)
    options = OcclusionOptions(
        arguments.size, arguments.stride, arguments.fill, arguments.class_name, arguments.layer, arguments.map
    )
    try:
        references = None if arguments.atlas is None else AtlasReferences.read(arguments.atlas, model.model)
    except CannotContinue as error:
        print_error(str(error))
        return UNUSABLE
    study = OcclusionStudy(client, model, options, Patience(say, arguments.timeout), references)
    outcomes: list[Outcome] = []
    try:
        for outcome in _outcomes(study, photos, files):
            outcomes.append(outcome)
            _print(*outcome, as_json=arguments.json)
    except (NotSaved, CannotContinue) as error:
        print_error(str(error))
        return FAILED
    return summary_status(print_photo_errors(outcomes, arguments), len(photos))


def _outcomes(study: OcclusionStudy, photos: list[Path], files: list[Files]) -> Iterator[Outcome]:
    files_of, numbers = dict(zip(photos, files, strict=True)), {photo: at for at, photo in enumerate(photos, 1)}

    def occlude(photo: Path) -> Finished:
        count = f" ({numbers[photo]} of {len(photos)})" if len(photos) > 1 else ""
        with progress_bar(f"occluding {photo.name}{count}") as progress:
            return _occlude(study, photo, files_of[photo], progress)

    return photo_by_photo(photos, occlude)


def _occlude(study: OcclusionStudy, photo: Path, files: Files, progress: Callable[[int, int | None], None]) -> Finished:
    """Occludes one photo and writes its files.

    Raises:
        ZfserveError: the call failed.
        NotSaved: a file cannot be written, or the photo cannot be read for it.
        CannotContinue: the server holds another model now.
    """
    result = study.occlude(photo, progress)
    if files.picture is not None and files.page is not None:
        upright = _opened(photo)
        save_figure(occlusion_figure(result, upright), files.picture)
        with saving():
            write_atomically(files.page, occlusion_page(result, upright).encode())
    return Finished(result, files)


def _opened(photo: Path) -> Image.Image:
    try:
        return open_photo(photo)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise NotSaved(f"{photo} cannot be drawn: {getattr(error, 'strerror', None) or error}") from error


def _print(photo: Path, answer: Finished | ZfserveError, *, as_json: bool) -> None:
    """Prints what became of one photo. Errors of people are printed at the end, all together."""
    if as_json:
        document: dict[str, object] = {"file": str(photo)}
        if isinstance(answer, ZfserveError):
            document["error"] = error_document(answer)
        else:
            document |= occlusion_document(answer.result)
            document |= {kind: str(file) for kind, file in answer.files._asdict().items() if file is not None}
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    if isinstance(answer, ZfserveError):
        return
    console = Console()
    console.print(escape(title_text(answer.result)), style="bold", highlight=False, soft_wrap=True)
    console.print(escape(summary_text(answer.result)), highlight=False, soft_wrap=True)
    if answer.result.note:
        console.print(escape(f"no projection: {answer.result.note}"), style="dim", highlight=False, soft_wrap=True)
    if answer.files.picture is not None:
        say(f"saved {answer.files.picture} and {answer.files.page}")


def _whole(text: str) -> int:
    """Parses a number of pixels.

    Raises:
        ArgumentTypeError: the text is no whole number above 0.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
