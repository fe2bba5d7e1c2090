"""This module reads what a run of `zfserve train` reached from its folder. `zfserve compare` calls it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zfserve_model.networks import NetworkSpec, count_parameters
from zfserve_model.training.state import flatten_plan

RECORD = "recipe.json"
_PLAN_KEYS = ("recipe", "class_ids", "photos", "start_digest", "freeze_through", "listing")


class RunError(ValueError):
    """The folder is not that of a run. The message says what to give instead."""


@dataclass(frozen=True)
class RunSummary:
    """Holds the results of one run.

    Attributes:
        run: the folder.
        network: the network.
        parameters: the number of weights and biases, as served.
        epochs_done, epochs: the finished epochs, and all epochs of the run.
        train_top1_error, val_top1_error, val_top5_error: shares of photos in [0, 1] that the finished network does not
            classify correctly, measured without augmentation and dropout. None if `missing` says why.
        missing: a sentence for each reason why figures are missing.
        plan: everything else that decided the outcome, by name, as plain JSON values.
    """

    run: Path
    network: NetworkSpec
    parameters: int
    epochs_done: int
    epochs: int
    train_top1_error: float | None
    val_top1_error: float | None
    val_top5_error: float | None
    missing: tuple[str, ...]
    plan: dict[str, Any]


def read_run(run: Path) -> RunSummary:
    """Reads the record of a run, finished or not.

    Raises:
        RunError: the folder has no record, or the record is damaged or of another program.
    """
    file = run / RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"there is no {file}; give folders that `zfserve train --output` wrote") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read; start the run's command again, and it writes the file anew") from error
    try:
        network = NetworkSpec(**record["network"])
        epochs = sum(stage["epochs"] for stage in record["recipe"]["stages"])
        errors, missing = _errors(record["last_epoch"], record["epochs_done"], epochs)
        return RunSummary(
            run,
            network,
            count_parameters(network),
            record["epochs_done"],
            epochs,
            *errors,
            missing,
            flatten_plan({key: record.get(key) for key in _PLAN_KEYS}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file} is not the record of a run of this release: {error}") from error


def _errors(
    last: dict[str, Any] | None, done: int, epochs: int
) -> tuple[tuple[float | None, float | None, float | None], tuple[str, ...]]:
    """Returns the three errors of a finished run, or reasons why they are missing."""
    if last is None or done < epochs:
        return (None, None, None), (f"{done} of {epochs} epochs are done, and the last one brings the errors",)
    fitted = last.get("fitted_top1")
    reasons = () if fitted is not None else ("an earlier release trained it, and did not measure the training photos",)
    return (None if fitted is None else 1 - fitted, 1 - last["val_top1"], 1 - last["val_top5"]), reasons


def list_differences(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """Returns what differs between runs besides their networks: the values in the order of the runs, by name."""
    names = dict.fromkeys(name for run in runs for name in run.plan)
    values = {name: [run.plan.get(name) for run in runs] for name in names}
    return {name: held for name, held in values.items() if any(value != held[0] for value in held)}
