"""`zfserve invariance` moves, scales, turns, flips and recolours photos (Zeiler & Fergus, figure 5)."""

import argparse
import difflib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.markup import escape
from rich.text import Text
from zfserve.client import Client
from zfserve.errors import ZfserveError
from zfserve.studies import Border, Resampling, TransformKind
from zfserve_cli.exit_statuses import FAILED, UNUSABLE
from zfserve_cli.photo_outcomes import error_document, print_photo_errors, summary_status
from zfserve_cli.picture_files import NotSaved
from zfserve_cli.service_call import call_service, print_error
from zfserve_photos.files import find_photos

from zfserve_studies.figures.invariance_figure import invariance_figure
from zfserve_studies.figures.style import save_figure
from zfserve_studies.invariance.claims import Claim, judge_claims
from zfserve_studies.invariance.document import claims_document, photo_document
from zfserve_studies.invariance.study import (
    DEFAULT_KINDS,
    EXAMPLES,
    GROUPS,
    KINDS,
    InvarianceOptions,
    InvarianceStudy,
    SweptPhoto,
)
from zfserve_studies.patience import Patience
from zfserve_studies.photo_by_photo import photo_by_photo
from zfserve_studies.progress import progress_bar, say
from zfserve_studies.run_folder import CannotContinue
from zfserve_studies.study_arguments import add_service_arguments, picture_file

Outcome = tuple[Path, SweptPhoto | ZfserveError]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="files, folders or quoted patterns such as '**/*.jpg'"
    )
    parser.add_argument(
        "--kind",
        dest="kinds",
        type=kinds,
        default=DEFAULT_KINDS,
        metavar="KIND,KIND...",
        help=f"what changes: some of {', '.join((*KINDS, *GROUPS))} (default: those of the paper, "
        f"{','.join(DEFAULT_KINDS)})",
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        default="",
        metavar="NAME",
        help="class whose probability is shown, given by its id or label (default: each photo's most probable class)",
    )
    parser.add_argument("--low-layer", default="", help="layer of the first distance (default: the first layer)")
    parser.add_argument(
        "--border",
        choices=get_args(Border),
        default="grey",
        help="what fills the places that the photo no longer covers (default: %(default)s)",
    )
    parser.add_argument(
        "--resampling",
        choices=get_args(Resampling),
        default="bilinear",
        help="how pixels are interpolated (default: %(default)s)",
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="picture file to write (default: invariance.png in this folder; with --json none)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document for each photo, and then one for the claims, each on its own line (JSON Lines)",
    )
    add_service_arguments(parser)


def kinds(text: str) -> tuple[TransformKind, ...]:
    """Parses kinds of transformation. Each comes once.

    Raises:
        ArgumentTypeError: there is no such kind.
    """
    found: dict[TransformKind, None] = {}
    for name in text.split(","):
        chosen = GROUPS.get(name.strip()) or tuple(kind for kind in KINDS if kind == name.strip())
        if not chosen:
            near = difflib.get_close_matches(name, (*KINDS, *GROUPS), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join((*KINDS, *GROUPS))}"
            raise argparse.ArgumentTypeError(f"there is no kind {name!r}; {hint}")
        found |= dict.fromkeys(chosen)
    return tuple(found)


def run(arguments: argparse.Namespace) -> int:
    try:
        photos = find_photos(arguments.photos)
        file = picture_file(photos, arguments, "invariance.png")
    except (OSError, ValueError) as error:
        print_error(str(error))
        return UNUSABLE
    return call_service(arguments, lambda client: _sweep_all(client, photos, file, arguments))


def _sweep_all(client: Client, photos: list[Path], file: Path | None, arguments: argparse.Namespace) -> int:
    name, version = arguments.model
    study = InvarianceStudy(
        client,
        client.describe(model=name, version=version),
        InvarianceOptions(
            arguments.kinds, arguments.class_name, arguments.low_layer, arguments.border, arguments.resampling
        ),
        Patience(say, arguments.timeout),
    )
    outcomes: list[Outcome] = []
    try:
        for photo, answer in _outcomes(study, photos, draw=file is not None):
            outcomes.append((photo, answer))
            if arguments.json:
                _write({"file": str(photo)} | _answer_document(answer))
        swept = [answer for _, answer in outcomes if isinstance(answer, SweptPhoto)]
        if swept:
            _show(study, swept, file, as_json=arguments.json)
    except (NotSaved, CannotContinue) as error:
        print_error(str(error))
        return FAILED
    return summary_status(print_photo_errors(outcomes, arguments), len(photos))


def _outcomes(study: InvarianceStudy, photos: list[Path], *, draw: bool) -> Iterator[Outcome]:
    total = len(photos) * len(study.options.kinds)
    shown = set(photos[:EXAMPLES]) if draw else set[Path]()
    with progress_bar("transforming", total) as progress:
        done = itertools.count(1)

        def sweep(photo: Path) -> SweptPhoto:
            return study.sweep(photo, pictures=photo in shown, progress=lambda _: progress(next(done), None))

        yield from photo_by_photo(photos, sweep)


def _show(study: InvarianceStudy, swept: list[SweptPhoto], file: Path | None, *, as_json: bool) -> None:
    """Writes the figure, and prints the claims.

    Raises:
        NotSaved: the figure cannot be written.
    """
    claims = judge_claims(swept)
    if file is not None:
        save_figure(invariance_figure(swept), file)
    if as_json:
        document = claims_document(claims, study.model.model, len(swept))
        _write(document | ({"picture": str(file)} if file is not None else {}))
        return
    console = Console()
    for photo in swept:
        untouched = next(iter(photo.sweeps.values())).steps[0].untouched
        console.print(
            f"{escape(photo.name)}: {escape(untouched.label)}, {untouched.probability:.1%}",
            highlight=False,
            soft_wrap=True,
        )
    count = "this photo" if len(swept) == 1 else f"these {len(swept)} photos"
    console.print(f"\nDo the claims of the paper hold for {count}?", style="bold", highlight=False)
    for claim in claims:
        console.print(_claim_text(claim), soft_wrap=True)
    if file is not None:
        say(f"saved {file}")


def _claim_text(claim: Claim) -> Text:
    """Returns the sentence of a claim. Its verdict is coloured."""
    colour = {True: "green", False: "red", None: "dim"}[claim.holds]
    text = Text(f"- {claim.sentence}")
    text.highlight_words([f"{claim.verdict.capitalize()}:"], f"bold {colour}")
    return text


def _answer_document(answer: SweptPhoto | ZfserveError) -> dict[str, object]:
    return {"error": error_document(answer)} if isinstance(answer, ZfserveError) else photo_document(answer)


def _write(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()
