"""`zfserve train`: a folder of photos in, trained weights, a log and two pictures out."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zfserve_model.checkpoint import Checkpoint, Preprocessing, save_checkpoint
from zfserve_model.networks import ARCHITECTURES, NetworkSpec, build_network
from zfserve_model.training.dataset import DatasetError, decode_photos, list_photos
from zfserve_model.training.loop import EpochResult, Split, Trainer, TrainingState
from zfserve_model.training.recipe import Recipe, Schedule, Step, parse_stages
from zfserve_model.training.teacher import teacher_scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/ and val/<class>/")
    parser.add_argument("--output", type=Path, default=Path("runs/zfnet"), help="folder for everything written")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="zfnet")
    parser.add_argument("--hidden-width", type=int, default=256, help="units in each hidden layer")
    parser.add_argument("--stages", default="128:16,224:3", help="SIZE:EPOCHS pairs, the last at 224")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.03, help="peak learning rate")
    parser.add_argument("--teacher", action="store_true", help="distil from EfficientNet-Lite0 (ImageNet weights)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")


def run(arguments: argparse.Namespace) -> int:
    console = Console()
    try:
        recipe = Recipe(
            stages=parse_stages(arguments.stages),
            batch_size=arguments.batch_size,
            peak_rate=arguments.rate,
            teacher_weight=0.5 if arguments.teacher else 0.0,
            seed=arguments.seed,
        )
        train_photos = list_photos(arguments.data / "train")
        val_photos = list_photos(arguments.data / "val")
        cache = arguments.output / "cache"
        train = Split(decode_photos(train_photos, cache), train_photos.labels)
        validation = Split(decode_photos(val_photos, cache), val_photos.labels)
    except (DatasetError, ValueError) as error:
        console.print(f"[red]error:[/] {error}")
        return 2
    device = torch.device(arguments.device)
    spec = NetworkSpec(arguments.architecture, len(train_photos.class_ids), arguments.hidden_width, batch_norm=True)
    network = build_network(spec, torch.Generator().manual_seed(recipe.seed))
    scores = None
    if arguments.teacher:
        with Progress(console=console) as progress:
            task = progress.add_task("teacher", total=len(train.labels))
            scores = teacher_scores(
                train.pixels, cache / "teacher.safetensors", device, lambda n: progress.advance(task, n)
            )
    state = TrainingState(network, recipe, device)
    state_file = arguments.output / "state.pt"
    if state_file.exists():
        state.load(state_file)
        console.print(f"resuming at step {state.next_step}")
    trainer = Trainer(recipe, train, validation, scores, device, choose_precision(arguments.precision, device), state_file)
    schedule = Schedule(recipe, len(train.labels))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=len(schedule), completed=state.next_step)

        def on_step(step: Step, loss: float) -> None:
            progress.update(task, completed=step.index + 1, description=f"epoch {step.epoch + 1} loss {loss:.3f}")

        for result in trainer.run(state, on_step):
            console.print(describe(result, schedule.epochs))
            sys.stdout.flush()
    save_checkpoint(
        Checkpoint(state.network, train_photos.class_ids, train_photos.class_ids, Preprocessing()),
        arguments.output / "weights.safetensors",
    )
    console.print(f"wrote {arguments.output / 'weights.safetensors'}; recipe {asdict(recipe)}")
    return 0


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively; elsewhere it is emulated and 20 times slower."""
    if name != "auto":
        return torch.bfloat16 if name == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu.get_capabilities()
    return torch.bfloat16 if native.get("avx512_bf16") or native.get("amx_bf16") else torch.float32


def describe(result: EpochResult, epochs: int) -> str:
    return (
        f"epoch {result.epoch:3d}/{epochs}  {result.size} px  train {result.train_loss:.3f} {result.train_top1:.3f}"
        f"  val {result.val_loss:.3f} top-1 {result.val_top1:.4f} top-5 {result.val_top5:.4f} ({result.val_photos})"
        f"  {result.images_per_s:.0f} images/s"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="zfserve train")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
