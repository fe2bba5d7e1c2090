"""This module writes the files of a run beside its weights: a log, two pictures and the recipe.

    log.csv        one row per epoch
    curves.png     loss and accuracy over the epochs
    filters.png    the filters of conv1
    recipe.json    the plan, the photos, and each session: command, versions, commit, machine

`zfserve train` calls it. It writes the tables after every epoch. It draws the pictures less often, because drawing
takes longer than an epoch of some thousand photos takes on a GPU.
"""

import csv
import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from zfserve_model.networks import Network, fold_batch_norm
from zfserve_model.training.state import EpochResult, TrainingState


@dataclass(frozen=True)
class Session:
    """Describes one start of `zfserve train`, the first one or a resumed one.

    Attributes:
        command: the command line.
        first_step: the index of its first step.
        device: the name of the GPU, or "cpu".
        precision: the dtype of matrix products, such as "bfloat16".
        started: the time of the start, ISO 8601, UTC.
        zfserve, torch: the versions of the libraries.
        commit: the git commit of the code, with `-dirty` if files differ from it. None outside a checkout.
        threads: the number of threads that PyTorch uses.
        machine: the operating system and the processor's architecture.
    """

    command: str
    first_step: int
    device: str
    precision: str
    started: str
    zfserve: str
    commit: str | None
    torch: str
    threads: int
    machine: str


def describe_session(command: str, first_step: int, device: torch.device, precision: torch.dtype) -> Session:
    """Describes the session that begins now, on this machine and with this code."""
    return Session(
        command=command,
        first_step=first_step,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        precision=str(precision).removeprefix("torch."),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        zfserve=version("zfserve"),
        commit=source_commit(Path(__file__)),
        torch=str(torch.__version__),  # `weights_only` could not load TorchVersion
        threads=torch.get_num_threads(),
        machine=platform.platform(),
    )


def source_commit(file: Path) -> str | None:
    """Returns the git commit of `file`, with `-dirty` if the checkout differs, or None if git does not know `file`."""
    commands = (
        [
            "git",
            "ls-files",
            "--error-unmatch",
            file.name,
        ],  # an installed copy may lie in the checkout of another project
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    )
    output = ""
    for command in commands:
        try:
            done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        output = done.stdout.strip()
    return output


def write_tables(folder: Path, state: TrainingState, photos: dict[str, dict[str, int]]) -> None:
    """Writes the recipe and the log. `photos` has the number of photos by split and class id."""
    write_recipe(folder / "recipe.json", state, photos)
    write_log(state.results, folder / "log.csv")


def draw_pictures(folder: Path, state: TrainingState) -> None:
    """Draws the curves and the filters."""
    draw_curves(state.results, folder / "curves.png")
    draw_filters(state.network, folder / "filters.png")


def write_log(results: Sequence[EpochResult], file: Path) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, [field.name for field in fields(EpochResult)])
        writer.writeheader()
        for result in results:
            writer.writerow({name: _round(value) for name, value in asdict(result).items()})


def _round(value: float | None) -> float | None:
    return round(value, 6) if isinstance(value, float) else value


def write_recipe(file: Path, state: TrainingState, photos: dict[str, dict[str, int]]) -> None:
    """Writes everything that is needed to repeat the run, and its results so far, as JSON."""
    record: dict[str, Any] = {
        **state.plan.document(),
        "data": {split: {"photos": sum(counts.values()), "by_class": counts} for split, counts in photos.items()},
        "sessions": state.sessions,
        "epochs_done": len(state.results),
        "training_s": round(state.elapsed_s, 1),
        "last_epoch": asdict(state.results[-1]) if state.results else None,
    }
    file.write_text(json.dumps(record, indent=2) + "\n")


def draw_curves(results: Sequence[EpochResult], file: Path) -> None:
    """Draws loss and accuracy over the epochs, and marks the epochs where the photos' size changes."""
    # This avoids pyplot, which asks for a window system and keeps figures in a global list.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [result.epoch for result in results]
    losses, shares = figure.subplots(1, 2)
    losses.plot(epochs, [result.train_loss for result in results], marker=".", label="training (augmented, all terms)")
    losses.plot(epochs, [result.val_loss for result in results], marker=".", label="validation (cross-entropy)")
    losses.set_ylabel("loss, nats")
    shares.plot(epochs, [100 * result.train_top1 for result in results], marker=".", label="training top-1 (augmented)")
    shares.plot(epochs, [100 * result.val_top1 for result in results], marker=".", label="validation top-1")
    shares.plot(epochs, [100 * result.val_top5 for result in results], marker=".", label="validation top-5")
    shares.set_ylabel("accuracy, %")
    grown = [after for before, after in pairwise(results) if before.size != after.size]
    for axes in (losses, shares):
        for result in [*results[:1], *grown]:
            axes.axvline(result.epoch, color="0.8", linewidth=1, zorder=0)
            axes.annotate(
                f"{result.size} px", (result.epoch, 1), xycoords=("data", "axes fraction"),
                xytext=(3, -3), textcoords="offset points", va="top", color="0.5", fontsize=8,
            )  # fmt: skip
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.2)
        axes.legend()
    FigureCanvasAgg(figure)
    figure.savefig(file)


def draw_filters(network: Network, file: Path) -> None:
    """Draws the filters of conv1 as they are served, with batch norm folded in."""
    from zfserve_model.render import render_filters

    render_filters(fold_batch_norm(network)).save(file)
