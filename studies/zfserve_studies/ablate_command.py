"""`zfserve ablate` measures the accuracy of a network with feature maps at zero or at their mean."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from zfserve.client import Client
from zfserve.errors import InvalidInput
from zfserve.model_description import ModelDescription
from zfserve.studies import Replacement
from zfserve_cli.exit_statuses import FAILED, OK, UNUSABLE
from zfserve_cli.picture_files import NotSaved
from zfserve_cli.service_call import call_service, print_error

from zfserve_studies.ablation.effects import Effects, PhotoAnswer, count_effects
from zfserve_studies.ablation.groups import Groups, GroupsUnusable, choose_groups
from zfserve_studies.ablation.study import AblationStudy
from zfserve_studies.figures.ablation_figure import ablation_figure, group_name
from zfserve_studies.figures.style import save_figure
from zfserve_studies.patience import Patience
from zfserve_studies.progress import progress_bar, say
from zfserve_studies.run_folder import CannotContinue, RunFolder, RunPlan, photos_digest
from zfserve_studies.study_arguments import add_service_arguments, positive
from zfserve_studies.transfer.data_set import DataSet, DataUnusable, read_data_set
from zfserve_studies.unreadable import unreadable

PHOTOS = 10
SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with a folder of photos for each class, named by the id or the label of the class",
    )
    parser.add_argument("--layer", default="last", help="layer or stage of the maps (default: last)")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--maps", metavar="M", help="maps, such as 0-15,40, one at a time (default: all maps)")
    chosen.add_argument("--groups", metavar="M;M", help='maps that are replaced together, such as "0-15;16-31;40,44"')
    parser.add_argument(
        "--replacement",
        choices=("zero", "mean"),
        default="zero",
        help="what stands in the place of a map: 0, or its mean over the photos (default: zero)",
    )
    parser.add_argument(
        "--photos",
        type=positive,
        default=PHOTOS,
        metavar="N",
        help="photos of each class, drawn at random with a fixed seed (default: %(default)d)",
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("ablate-run"),
        metavar="DIR",
        help="folder of the answers; the same command continues it (default: %(default)s)",
    )
    parser.add_argument(
        "--save", type=Path, metavar="PNG", help="picture to write (default: ablate.png; with --json none)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_service_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        data = _drawn(read_data_set(arguments.data), arguments.photos)
        if arguments.save is not None and arguments.save.suffix.lower() != ".png":
            raise DataUnusable(f"--save {arguments.save} is no PNG file; name one with the suffix .png")
    except (OSError, DataUnusable) as error:
        print_error(str(error))
        return UNUSABLE
    return call_service(arguments, lambda client: _ablate(client, data, arguments))


def _drawn(data: DataSet, count: int) -> DataSet:
    """Returns the data with at most `count` photos of each class."""
    generator = np.random.default_rng(0)
    orders = [generator.permutation(np.flatnonzero(data.labels == at))[:count] for at in range(len(data.classes))]
    kept = np.sort(np.concatenate(orders))
    return DataSet(data.root, data.classes, tuple(data.photos[at] for at in kept), data.labels[kept])


def _ablate(client: Client, data: DataSet, arguments: argparse.Namespace) -> int:
    name, version = arguments.model
    model = client.describe(model=name, version=version)
    study = AblationStudy(client, model, arguments.layer, Patience(say))
    try:
        outputs = _outputs(data, model)
        layer = study.find_layer(data.photos)
        groups = choose_groups(arguments.maps, arguments.groups, layer.maps)
    except (DataUnusable, GroupsUnusable) as error:
        print_error(str(error))
        return UNUSABLE
    chosen = {"maps": arguments.maps, "groups": arguments.groups}
    options = {"layer": layer.layer, **chosen, "replacement": arguments.replacement}
    try:
        digest = photos_digest(data.photos, data.root)
        folder = RunFolder.begin(arguments.run, RunPlan("ablate", model.model, digest, options))
        answers = _answers(study, folder, data, outputs, groups, arguments)
        effects = count_effects(answers, len(data.classes))
        picture: Path | None = arguments.save or (None if arguments.json else Path("ablate.png"))
        labels = [model.classes[at].label for at in outputs]
        if picture is not None:
            title = f"{layer.layer}, replaced by {'0' if arguments.replacement == 'zero' else 'the mean'}"
            save_figure(ablation_figure(effects, groups, labels, title), picture)
    except (NotSaved, CannotContinue, DataUnusable) as error:
        print_error(str(error))
        return FAILED
    except OSError as error:
        print_error(f"{error.filename or arguments.run} cannot be used: {error.strerror or error}")
        return FAILED
    if arguments.json:
        document = {"model": asdict(model.model), **options, **_document(effects, groups, labels)}
        if picture is not None:
            document["picture"] = str(picture)
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        return OK
    _print(effects, groups, labels)
    say(f"saved {picture}")
    return OK


def _outputs(data: DataSet, model: ModelDescription) -> list[int]:
    """Returns the model's output for each folder. Raises DataUnusable if a folder is no class of the model."""
    known = {each.label.casefold(): each.index for each in model.classes}
    known |= {each.class_id.casefold(): each.index for each in model.classes}
    for name in data.classes:
        if name.casefold() not in known:
            raise DataUnusable(f"the model has no class {name!r}; name the folder by the id or the label of its class")
    return [known[name.casefold()] for name in data.classes]


def _answers(
    study: AblationStudy,
    folder: RunFolder,
    data: DataSet,
    outputs: list[int],
    groups: Groups,
    arguments: argparse.Namespace,
) -> list[PhotoAnswer]:
    """Returns the answers of all photos that can be read, and names the others."""
    replacement: Replacement = "zero"
    if arguments.replacement == "mean":
        with progress_bar("means of the maps", len(data.photos)) as progress:
            replacement = study.means(folder, data.photos, progress)
    answers = []
    with progress_bar("replacing maps", len(data.photos)) as progress:
        for at, (photo, label) in enumerate(zip(data.photos, data.labels, strict=True)):
            progress(at, len(data.photos))
            known = int(label), outputs[label]
            try:
                answers.append(study.answer(folder, f"photo-{at:06d}.json", photo, known, groups, replacement))
            except InvalidInput as error:
                if not unreadable(error):
                    raise
                say(f"left out {photo}: {error.message}")
    if not answers:
        raise DataUnusable(f"no photo in {data.root} can be read; name a folder with photos")
    return answers


def _document(effects: Effects, groups: Groups, labels: list[str]) -> dict[str, Any]:
    def row(at: int) -> dict[str, Any]:
        by_class = zip(labels, effects.by_class[at].tolist(), strict=True)
        return {
            "accuracy": float(effects.whole[at]),
            "probability": float(effects.probability[at]),
            "by_class": {label: None if np.isnan(value) else value for label, value in by_class},
        }

    return {
        "photos": int(effects.photos.sum()),
        "untouched": row(0),
        "replaced": [{"maps": group, **row(at)} for at, group in enumerate(groups, 1)],
    }


def _print(effects: Effects, groups: Groups, labels: list[str]) -> None:
    table = Table("maps replaced", "accuracy", "probability", "hit most", box=None, header_style="bold")
    table.add_row("none", f"{100 * effects.whole[0]:.1f}%", f"{100 * effects.probability[0]:.1f}%", "")
    for at in effects.ranked()[:SHOWN]:
        change = np.nan_to_num(effects.by_class[at + 1] - effects.by_class[0])
        worst = int(change.argmin())
        hit = f"{labels[worst]} ({100 * change[worst]:+.0f} points)" if change[worst] < 0 else "no class"
        row = group_name(groups[at]), f"{100 * effects.whole[at + 1]:.1f}%", f"{100 * effects.probability[at + 1]:.1f}%"
        table.add_row(*row, escape(hit))
    console = Console()
    console.print(table)
    same = int(np.sum(effects.whole[1:] >= effects.whole[0]))
    console.print(
        f"{effects.photos.sum()} photos. Without {same} of {len(groups)} groups the accuracy is no lower.",
        highlight=False,
        soft_wrap=True,
    )
