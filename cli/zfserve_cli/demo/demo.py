"""`python -m zfserve_cli.demo.demo`: from the shipped weights to a page that shows what the network saw.

Called by `make demo` from the repository's root. Exports the weights where there is no bundle yet, starts the service,
classifies the sample photos, projects every convolution, writes it all to one folder, and stops what it started. With
`--address` it only asks, as tools/try_images.py has it do.
"""

import argparse
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from zfserve.client import STRONGEST, Client
from zfserve.errors import ZfserveError
from zfserve.results import Classification, Layer, ModelDescription, Projection
from zfserve_photos.files import find_photos

from zfserve_cli.classify_command import score_table
from zfserve_cli.demo.page import Explained, render_page
from zfserve_cli.demo.photo_truth import Verdict, judge, read_truth
from zfserve_cli.exit_statuses import FAILED, INTERRUPTED, OK, UNUSABLE
from zfserve_cli.projection_files import save_sheet
from zfserve_cli.service_process import STARTING_S, ServiceFailed, run_zfserve, running_service

LOOK_EVERY_S = 0.1
VERDICT_STYLES = {"right": "green", "near": "yellow", "wrong": "red"}


class DemoFailed(Exception):
    """The message says which step failed and what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m zfserve_cli.demo.demo", description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("weights/zfnet-imagenette.safetensors"))
    parser.add_argument("--model", type=Path, default=Path("models/zfnet"), help="bundle; exported where there is none")
    parser.add_argument("--photos", default="samples", help="file, folder or glob")
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--address", help="of a service that runs already, which is then asked; else one is started")
    arguments = parser.parse_args()
    console = Console()
    # A plain `kill` must not leave the service behind either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        photos = find_photos([arguments.photos])
        check_names(photos, arguments.output)
        arguments.output.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            if (address := arguments.address) is None:
                ensure_bundle(arguments.model, arguments.weights, console)
                console.print("starting the service, which loads the model and checks it")
                address = stack.enter_context(running_service(arguments.model, arguments.output)).address
                console.print("[green]✓[/] service ready")
            client = stack.enter_context(Client(address))
            page = explain_photos(client, photos, arguments.output, console)
    except (OSError, ValueError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return UNUSABLE
    except (DemoFailed, ServiceFailed, ZfserveError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return FAILED
    except KeyboardInterrupt:
        console.print("stopped")
        return INTERRUPTED
    console.print(f"\nOpen [bold]{escape(str(page.resolve()))}[/] in a browser.", soft_wrap=True, highlight=False)
    return OK


def check_names(photos: list[Path], output: Path) -> None:
    """Raises ValueError where what is written of one photo would replace another, or a photo itself."""
    for stem, count in Counter(photo.stem for photo in photos).items():
        if count > 1:
            raise ValueError(f"there are several photos called {stem}; give each a name of its own")
    if any(photo.parent.resolve() == output.resolve() for photo in photos):
        raise ValueError(f"the photos lie in {output}; give another folder with --output")


def ensure_bundle(model: Path, weights: Path, console: Console) -> None:
    """Export `weights` to `model` unless a bundle is there.

    Raises:
        DemoFailed: there are no weights, or the export failed.
    """
    if any(model.glob("*/manifest.json")):
        console.print(f"[green]✓[/] model in {escape(str(model))}")
        return
    if not weights.is_file():
        raise DemoFailed(f"there are no weights at {weights}; run the demo from the repository's root")
    console.print(f"exporting {escape(str(weights))} to {escape(str(model))}, once")
    command = ["export", str(weights), "--output", str(model.parent), "--name", model.name]
    if run_zfserve(*command) != 0:
        raise DemoFailed(f"`zfserve {' '.join(command)}` failed; its own message stands above")


def explain_photos(client: Client, photos: list[Path], folder: Path, console: Console) -> Path:
    """Classify and project `photos`; write sheets and the page to `folder`, and return the page."""
    labels = [entry.label for entry in client.describe().classes]
    truths = [read_truth(photo) for photo in photos]
    answers: list[tuple[Path, Classification, Verdict | None]] = []
    for photo, truth in zip(photos, truths, strict=True):
        answer = client.classify(photo, top_k=5)
        verdict = judge(truth, answer, labels) if truth else None
        answers.append((photo, answer, verdict))
        console.print(score_table(answer, photo.name))
        if verdict:
            sentence = Text(f"{verdict.mark} {verdict.sentence}", VERDICT_STYLES[verdict.word])
            console.print(Padding(sentence, (0, 1)))
        console.print()
    description = _wait_for_projections(client, console)
    layers = [layer for layer in description.layers if layer.kind == "conv"]
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
        task = progress.add_task("", total=len(photos) * len(layers) * STRONGEST)
        for photo, answer, verdict in answers:
            projections: dict[str, list[Projection]] = {}
            for layer in layers:
                projections[layer.name] = []
                said = answer.classes[0].class_id if layer is layers[-1] else None
                for projection in client.project(photo, layer.name, for_class=said):
                    projections[layer.name].append(projection)
                    progress.advance(task)
                title = f"{layer.name} of {photo.name}" + (f", for {answer.classes[0].label}" if said else "")
                save_sheet(projections[layer.name], title, _sheet(folder, photo, layer))
            explained.append(Explained(photo, answer, projections, verdict))
            shutil.copy(photo, folder)
    page = folder / "index.html"
    page.write_text(render_page(explained, description, layers), encoding="utf-8")
    console.print(f"[green]✓[/] {len(photos)} photos, {len(photos) * len(layers)} contact sheets", highlight=False)
    return page


def _wait_for_projections(client: Client, console: Console) -> ModelDescription:
    deadline = time.monotonic() + STARTING_S
    with console.status("waiting for the worker that computes projections"):
        while not (description := client.describe()).projection_available:
            if time.monotonic() > deadline:
                raise DemoFailed(f"the worker was not ready within {STARTING_S:.0f} s; see service.log")
            time.sleep(LOOK_EVERY_S)
    return description


def _sheet(folder: Path, photo: Path, layer: Layer) -> Path:
    return folder / f"{photo.stem}-{layer.name}.png"


if __name__ == "__main__":
    sys.exit(main())
