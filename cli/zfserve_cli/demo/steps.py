"""Runs the steps of the demo: the bundle, the calls, the contact sheets and the page. `__main__` calls them."""

import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from zfserve.client import Client
from zfserve.model_description import Layer, ModelDescription
from zfserve.requests import STRONGEST
from zfserve.results import Classification, Projection

from zfserve_cli.classify_command import score_table
from zfserve_cli.demo.page import ExplainedPhoto, render_page
from zfserve_cli.demo.photo_truth import Verdict, judge, read_truth
from zfserve_cli.demo.second_opinion import ask_second
from zfserve_cli.projection_files import save_sheet
from zfserve_cli.service_process import START_TIMEOUT_S, run_zfserve

POLL_INTERVAL_S = 0.1
VERDICT_STYLES = {"right": "green", "near": "yellow", "wrong": "red"}


Answer = tuple[Path, Classification, Verdict | None]
"""Holds a photo, its classes, and the verdict on them. The verdict is None if no truth is known."""


class DemoFailed(Exception):
    """A step failed. The message says which one and what to do."""


def check_names(photos: list[Path], output: Path) -> None:
    """Checks that no two files of the output have the same name, and that the output replaces no photo.

    Raises:
        ValueError: two photos have the same name, or the photos lie in `output`.
    """
    for stem, count in Counter(photo.stem for photo in photos).items():
        if count > 1:
            raise ValueError(f"there are several photos called {stem}; give each its own name")
    if any(photo.parent.resolve() == output.resolve() for photo in photos):
        raise ValueError(f"the photos lie in {output}; give another folder with --output")


def ensure_bundle(model: Path, source: str, console: Console) -> None:
    """Exports `source` to `model` if there is no bundle yet.

    Args:
        model: the folder of the model.
        source: a file of weights, or a source that `zfserve export` knows by name.

    Raises:
        DemoFailed: there is no such file, or the export failed.
    """
    if any(model.glob("*/manifest.json")):
        console.print(f"[green]✓[/] model in {escape(str(model))}")
        return
    if Path(source).suffix and not Path(source).is_file():
        raise DemoFailed(f"there are no weights at {source}; run the demo from the repository's root")
    console.print(f"exporting {escape(source)} to {escape(str(model))}, once")
    command = ["export", source, "--output", str(model.parent), "--name", model.name, "--no-fp16"]
    if run_zfserve(*command) != 0:
        raise DemoFailed(f"`zfserve {' '.join(command)}` failed; its message is above")


def explain_photos(
    client: Client, photos: list[Path], folder: Path, console: Console, second: str | None = None
) -> Path:
    """Classifies and projects `photos`. Writes contact sheets and the page to `folder`, and returns the page.

    Args:
        second: the name of a second network of the service, which is asked about the same photos.
    """
    answers = _classify_all(client, photos, console)
    description = _wait_for_projections(client, console)
    layers = [layer for layer in description.layers if layer.kind == "conv"]
    explained = _project_all(client, answers, layers, folder, console)
    if second:
        explained = [_with_second(client, entry, second, folder, console) for entry in explained]
    page = folder / "index.html"
    page.write_text(render_page(explained, description, layers), encoding="utf-8")
    console.print(f"[green]✓[/] {len(photos)} photos, {len(photos) * len(layers)} contact sheets", highlight=False)
    return page


def _with_second(client: Client, entry: ExplainedPhoto, model: str, folder: Path, console: Console) -> ExplainedPhoto:
    """Adds the answer of the network `model`, prints it, and writes its heatmap."""
    opinion = ask_second(client, entry.photo, read_truth(entry.photo), model)
    (folder / f"{entry.photo.stem}-{model}.png").write_bytes(opinion.explanation.overlay_png)
    best = opinion.classification.classes[0]
    sentence = f"{model} calls {entry.photo.name} {best.label} ({best.probability:.1%})"
    verdict = opinion.verdict
    said = Text(sentence if verdict is None else f"{verdict.mark} {sentence}. {verdict.sentence}")
    said.stylize(VERDICT_STYLES[verdict.word] if verdict else "")
    console.print(Padding(said, (0, 1)))
    return replace(entry, second=opinion)


def _classify_all(client: Client, photos: list[Path], console: Console) -> list[Answer]:
    labels = [entry.label for entry in client.describe().classes]
    truths = [read_truth(photo) for photo in photos]
    answers: list[Answer] = []
    for photo, truth in zip(photos, truths, strict=True):
        classification = client.classify(photo, top_k=5)
        verdict = judge(truth, classification, labels) if truth else None
        answers.append((photo, classification, verdict))
        console.print(score_table(classification, photo.name))
        if verdict:
            sentence = Text(f"{verdict.mark} {verdict.sentence}", VERDICT_STYLES[verdict.word])
            console.print(Padding(sentence, (0, 1)))
        console.print()
    return answers


def _project_all(
    client: Client, answers: list[Answer], layers: list[Layer], folder: Path, console: Console
) -> list[ExplainedPhoto]:
    """Projects every layer of every photo, and writes a contact sheet for each.

    The maps of the highest layer are those that add most to the most probable class.
    """
    explained = []
    progress = Progress(
        TextColumn("projecting"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with progress:
        task = progress.add_task("", total=len(answers) * len(layers) * STRONGEST)
        for photo, classification, verdict in answers:
            best = classification.classes[0]
            projections: dict[str, list[Projection]] = {}
            for layer in layers:
                projections[layer.name] = []
                for_class = best.class_id if layer is layers[-1] else None
                for projection in client.project(photo, layer.name, for_class=for_class):
                    projections[layer.name].append(projection)
                    progress.advance(task)
                title = f"{layer.name} of {photo.name}" + (f", for {best.label}" if for_class else "")
                save_sheet(projections[layer.name], title, folder / f"{photo.stem}-{layer.name}.png")
            explained.append(ExplainedPhoto(photo, classification, projections, verdict))
            shutil.copy(photo, folder)
    return explained


def _wait_for_projections(client: Client, console: Console) -> ModelDescription:
    deadline = time.monotonic() + START_TIMEOUT_S
    with console.status("waiting for the worker that computes projections"):
        while not (description := client.describe()).projection_available:
            if time.monotonic() > deadline:
                raise DemoFailed(f"the worker was not ready within {START_TIMEOUT_S:.0f} s; see service.log")
            time.sleep(POLL_INTERVAL_S)
    return description
