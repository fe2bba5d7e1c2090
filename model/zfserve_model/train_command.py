"""`zfserve train` reads a folder of photos and writes trained weights, a log and two pictures.

It reads the arguments into a recipe, decodes the photos, builds or resumes the network, trains it and writes the files.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from zfserve_protos.extras import not_installed

from zfserve_model import efficientnet_lite
from zfserve_model.checkpoint import Checkpoint, CheckpointError, file_digest, save_checkpoint
from zfserve_model.devices import NoSuchDevice, choose_device
from zfserve_model.labels import LabelsError, label_classes, read_labels
from zfserve_model.preprocessing import Preprocessing
from zfserve_model.training.dataset import DatasetError, PhotoFolder, Split, decode_photos, list_splits
from zfserve_model.training.loop import Diverged, Interrupted, Trainer
from zfserve_model.training.network_options import add_network_arguments, build_from_options
from zfserve_model.training.periodic_timer import PeriodicTimer
from zfserve_model.training.photos import PhotoBatches
from zfserve_model.training.progress import report_count, report_run
from zfserve_model.training.recipe import Recipe, RecipeError, Schedule, parse_stages
from zfserve_model.training.report import describe_session, draw_pictures, write_tables
from zfserve_model.training.snapshots import Snapshots, parse_epochs
from zfserve_model.training.state import Plan, StateError, TrainingState
from zfserve_model.training.teacher import (
    TEACHER_SEES,
    PhotoTeacher,
    Teacher,
    ViewTeacher,
    teacher_scores,
)

TEACHER_WEIGHT = 0.5
DEFAULT_RATE = 0.03
DRAW_EVERY_S = 30.0
FINE_TUNING_RATE = 0.003
"""Saved weights have their batch norm folded in. A network without batch norm tolerates a tenth of the usual rate."""

UNUSABLE_INPUT = (CheckpointError, DatasetError, Diverged, LabelsError, NoSuchDevice, OSError, RecipeError, StateError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/ and val/<class>/")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/zfnet"),
        help="folder for all output; an interrupted run in it is resumed (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--labels", type=Path, help="readable class names: a JSON object, or lines of id<TAB>label")

    parser.add_argument(
        "--snapshots", metavar="EPOCHS",
        help="keep the weights after these epochs too, for example 1,2,5,10; in OUTPUT/snapshots",
    )  # fmt: skip
    add_network_arguments(parser)
    usual = Recipe()
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--stages",
        default="128:16,224:3",
        help="SIZE:EPOCHS,..., sizes from 64 to 224 pixels, the last 224 (default: %(default)s)",
    )
    recipe.add_argument("--batch-size", type=int, default=usual.batch_size, help="default: %(default)s")
    recipe.add_argument(
        "--rate", type=float, help=f"peak learning rate (default: {DEFAULT_RATE}, with --from {FINE_TUNING_RATE})"
    )
    recipe.add_argument("--weight-decay", type=float, default=usual.weight_decay, help="default: %(default)s")
    recipe.add_argument("--label-smoothing", type=float, default=usual.label_smoothing, help="default: %(default)s")
    recipe.add_argument(
        "--teacher", nargs="?", choices=TEACHER_SEES, const=usual.teacher_sees,
        help="distil from EfficientNet-Lite0 (ImageNet weights). `photos`, the default, scores each photo once. "
        "`views` scores the augmented photos in every step, which takes longer",
    )  # fmt: skip
    recipe.add_argument("--seed", type=int, default=usual.seed, help="default: %(default)s")

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    machine.add_argument(
        "--precision", choices=["auto", "fp32", "bf16"], default="auto",
        help="auto chooses bf16 if the hardware multiplies it natively",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 when done, 2 for unusable input, and 130 or 143 if a signal stopped the run."""
    console, errors = Console(), Console(stderr=True)
    try:
        return _train(arguments, console)
    except UNUSABLE_INPUT as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("stopped before training began; the same command starts again")
        return 128 + signal.SIGINT


def _train(arguments: argparse.Namespace, console: Console) -> int:
    _require_packages("matplotlib", *(efficientnet_lite.PACKAGES if arguments.teacher else ()))
    device = choose_device(arguments.device)
    precision = choose_precision(arguments.precision, device)
    torch.backends.cudnn.benchmark = True  # shapes change only with the stages, so its trials pay off
    folders = list_splits(arguments.data)
    labels = label_classes(folders[0].class_ids, read_labels(arguments.labels) if arguments.labels else None)
    state = _build_state(arguments, folders[0], device)
    state_file = arguments.output / "state.pt"
    if state_file.exists():
        state.load(state_file)
        console.print(f"resuming at step {state.next_step} of {len(Schedule(state.plan.recipe, state.plan.photos))}")
    snapshots = Snapshots(
        arguments.output,
        parse_epochs(arguments.snapshots) if arguments.snapshots is not None else (),
        folders[0].class_ids,
        labels,
    )
    snapshots.require_possible(len(state.plan.recipe.epoch_sizes), len(state.results))
    if snapshots.epochs:
        _print(console, snapshots.describe(state.network.spec))
    state.sessions.append(asdict(describe_session(command_line(arguments), state.next_step, device, precision)))
    train, validation = (_decode(folder, arguments.output / "cache", console) for folder in folders)
    teacher: Teacher | None = None
    if arguments.teacher == "views":
        teacher = ViewTeacher(device)
    elif arguments.teacher:
        cache = arguments.output / "cache" / f"teacher-{folders[0].fingerprint()}.safetensors"
        with report_count(console, "scoring with the teacher", len(train.labels)) as advance:
            teacher = PhotoTeacher(teacher_scores(train.pixels, cache, device, advance).to(device))
    with stop_on_signals() as received:
        trainer = Trainer(
            state.plan.recipe,
            PhotoBatches(train, device),
            PhotoBatches(validation, device),
            teacher,
            device,
            precision,
            state_file,
            interrupted=lambda: bool(received),
            keep_epoch=snapshots.keep,
        )
        try:
            _run(trainer, state, {"train": folders[0].counts(), "val": folders[1].counts()}, console)
        except Interrupted:
            _print(console, f"stopped at step {state.next_step}; the same command resumes from {state_file}")
            return 128 + received[0]
    weights = arguments.output / "weights.safetensors"
    save_checkpoint(Checkpoint(state.network, folders[0].class_ids, labels, Preprocessing()), weights)
    _print(console, f"wrote {weights}, with log.csv, curves.png, filters.png and recipe.json beside it")
    return 0


def _run(trainer: Trainer, state: TrainingState, photos: dict[str, dict[str, int]], console: Console) -> None:
    schedule = Schedule(trainer.recipe, len(trainer.train))
    folder = trainer.save_to.parent
    write_tables(folder, state, photos)
    picture_timer = PeriodicTimer(DRAW_EVERY_S, at_once=True)
    with report_run(console, schedule, trainer.recipe.batch_size, state.next_step) as reporter:
        for result in trainer.run(state, reporter.step):
            reporter.epoch(result)
            write_tables(folder, state, photos)
            if picture_timer.is_due():
                draw_pictures(folder, state)
    draw_pictures(folder, state)


def _build_state(arguments: argparse.Namespace, photos: PhotoFolder, device: torch.device) -> TrainingState:
    """Builds the state of a run that begins now."""
    usual_rate = FINE_TUNING_RATE if arguments.start else DEFAULT_RATE
    recipe = Recipe(
        stages=parse_stages(arguments.stages),
        batch_size=arguments.batch_size,
        peak_rate=usual_rate if arguments.rate is None else arguments.rate,
        weight_decay=arguments.weight_decay,
        label_smoothing=arguments.label_smoothing,
        teacher_weight=TEACHER_WEIGHT if arguments.teacher else 0.0,
        teacher_sees=arguments.teacher or Recipe.teacher_sees,
        seed=arguments.seed,
    )
    network = build_from_options(arguments, photos.class_ids, torch.Generator().manual_seed(recipe.seed))
    digest = file_digest(arguments.start) if arguments.start else None
    plan = Plan(
        recipe,
        network.spec,
        photos.class_ids,
        len(photos.paths),
        digest,
        arguments.freeze_through,
        photos.listing(),
    )
    return TrainingState(network, plan, device)


def _decode(photos: PhotoFolder, cache: Path, console: Console) -> Split:
    with report_count(console, "decoding", len(photos.paths)) as advance:
        return Split(decode_photos(photos, cache, advance), photos.labels)


def _require_packages(*names: str) -> None:
    """Checks for missing packages now, because the training takes hours. Raises RecipeError if one is missing."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise RecipeError(not_installed(missing[0], "train"))


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns bfloat16 if the hardware multiplies it natively. Otherwise it would be emulated, 20 times slower."""
    if name != "auto":
        return torch.bfloat16 if name == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu.get_capabilities()
    return torch.bfloat16 if native.get("avx512_bf16") or native.get("amx_bf16") else torch.float32


def command_line(arguments: argparse.Namespace) -> str:
    """Returns the command that has these arguments. It leaves out arguments that have their default."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["zfserve", "train"]
    for name, default in vars(parser.parse_args(["--data", ""])).items():
        value = getattr(arguments, name)
        if value != default:
            flag = "--from" if name == "start" else f"--{name.replace('_', '-')}"
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM. A second signal ends the process as usual."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    previous = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _print(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    command = argparse.ArgumentParser(prog="zfserve train")
    add_arguments(command)
    sys.exit(run(command.parse_args()))
