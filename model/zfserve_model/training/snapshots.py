"""Snapshots are the weights of a run after chosen epochs. Each is a checkpoint of its own.

`zfserve train --snapshots` keeps them, for pictures of how features develop (Zeiler & Fergus, figure 4). They are
exported like the weights at the end of a run.
"""

from dataclasses import dataclass
from pathlib import Path

from zfserve_model.checkpoint import Checkpoint, save_checkpoint
from zfserve_model.networks import Network, NetworkSpec, count_parameters
from zfserve_model.preprocessing import Preprocessing
from zfserve_model.training.recipe import RecipeError

BYTES_PER_WEIGHT = 2
"""Checkpoints hold float16."""


def snapshot_file(run: Path, epoch: int) -> Path:
    """Returns the path of the weights of `run` after `epoch`, a number from 1."""
    return run / "snapshots" / f"epoch-{epoch:03d}.safetensors"


def parse_epochs(text: str) -> tuple[int, ...]:
    """Parses epochs. `"1,2,5"` means after the first, the second and the fifth epoch. Returns them sorted.

    Raises:
        RecipeError: the text is not numbers of at least 1.
    """
    try:
        epochs = sorted({int(number) for number in text.split(",")})
    except ValueError:
        epochs = []
    if not epochs or epochs[0] < 1:
        raise RecipeError(f"--snapshots {text!r} must be numbers of epochs from 1, as in 1,2,5,10")
    return tuple(epochs)


@dataclass(frozen=True)
class Snapshots:
    """Keeps the weights of a run after chosen epochs.

    Attributes:
        run: the folder of the run.
        epochs: the numbers of the epochs, from 1.
        class_ids, labels: the classes, as in `Checkpoint`.
    """

    run: Path
    epochs: tuple[int, ...]
    class_ids: tuple[str, ...]
    labels: tuple[str, ...]

    def require_possible(self, epochs: int, done: int) -> None:
        """Checks the choice for a run of `epochs` epochs, of which `done` are over.

        Raises:
            RecipeError: the run has no such epoch, or it is over and its weights were not kept.
        """
        if self.epochs and self.epochs[-1] > epochs:
            raise RecipeError(
                f"--snapshots names epoch {self.epochs[-1]}, but the run has {epochs}; leave it out, or give --stages "
                "more epochs"
            )
        for epoch in self.epochs:
            if epoch <= done and not snapshot_file(self.run, epoch).is_file():
                raise RecipeError(
                    f"epoch {epoch} of this run is over and its weights were not kept; leave it out of --snapshots, or "
                    "start again with a new --output"
                )

    def keep(self, network: Network, epoch: int) -> None:
        """Writes the weights if `epoch` is one of the chosen. They replace those of an interrupted try.

        Raises:
            CheckpointError: the weights are not finite.
            OSError: the file cannot be written.
        """
        if epoch not in self.epochs:
            return
        file = snapshot_file(self.run, epoch)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(Checkpoint(network, self.class_ids, self.labels, Preprocessing()), file)

    def describe(self, spec: NetworkSpec) -> str:
        """Returns a sentence about the epochs, the folder and the disk use."""
        each_mb = count_parameters(spec) * BYTES_PER_WEIGHT / 1e6
        return (
            f"keeps the weights of epochs {', '.join(map(str, self.epochs))} in {snapshot_file(self.run, 1).parent}: "
            f"{each_mb:.1f} MB each, {each_mb * len(self.epochs):.1f} MB in all"
        )
