"""What a run leaves behind beside its weights: a log, two pictures and the recipe.

    log.csv        one row per epoch
    curves.png     loss and accuracy over the epochs
    filters.png    the filters of conv1
    recipe.json    the plan, the photos, and each session: command, versions, commit, machine

Called by `zfserve train`: tables after every epoch, pictures at times, as drawing them takes longer than a GPU takes
for an epoch of some thousand photos.
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
    """One start of `zfserve train`, first or resumed.

    Attributes:
        command: as one would type it.
        first_step: where it began.
        commit: git commit of the code, with `-dirty` where files differ from it; None outside a checkout.
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
    """The session that begins now, on this machine, with this code."""
    return Session(
        command=command,
        first_step=first_step,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        precision=str(precision).removeprefix("torch."),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        zfserve=version("zfserve"),
        commit=source_commit(Path(__file__)),
        torch=str(torch.__version__),  # a class of its own, which `weights_only` would not load again
        threads=torch.get_num_threads(),
        machine=platform.platform(),
    )


def source_commit(file: Path) -> str | None:
    """The commit that `file` is part of, `-dirty` where the checkout differs; None where git does not know the file."""
    commands = (
        ["git", "ls-files", "--error-unmatch", file.name],  # an installed copy may lie in another project's checkout
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
    """The recipe and the log. `photos` are numbers by split and class id."""
    write_recipe(folder / "recipe.json", state, photos)
    write_log(state.results, folder / "log.csv")


def draw_pictures(folder: Path, state: TrainingState) -> None:
    """The curves and the filters."""
    draw_curves(state.results, folder / "curves.png")
    draw_filters(state.network, folder / "filters.png")


def write_log(results: Sequence[EpochResult], file: Path) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, [field.name for field in fields(EpochResult)])
        writer.writeheader()
        for result in results:
            writer.writerow({name: _round(value) for name, value in asdict(result).items()})


def _round(value: float) -> float:
    return round(value, 6) if isinstance(value, float) else value


def write_recipe(file: Path, state: TrainingState, photos: dict[str, dict[str, int]]) -> None:
    """Everything needed to repeat the run, and what it reached so far, as JSON."""
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
    """Loss and accuracy over the epochs, with a mark where the photos' size changes."""
    # Without pyplot: no window system is asked for, and no figure stays behind in a global list.
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
    """The filters of conv1 as they are served, batch norm folded in."""
    from zfserve_model.render import render_filters

    render_filters(fold_batch_norm(network)).save(file)
