"""Merges the scans of shards. The result is the same as that of one run over all photos."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zfserve_studies.atlas.scan import ScanState, read_state
from zfserve_studies.atlas.strongest import Strongest
from zfserve_studies.run_folder import PLAN_FILE, CannotContinue, RunFolder


def read_shards(folders: Sequence[Path]) -> tuple[dict[str, Any], ScanState]:
    """Returns the plan that all shards share, and the merged state.

    Raises:
        CannotContinue: a folder holds no finished shard, shards differ in their model, options or photos, or a shard is
            missing or there twice.
    """
    plans = [_plan(folder) for folder in folders]
    numbers: dict[int, Path] = {}
    first, shared, total = folders[0], _without_shard(plans[0]), plans[0]["options"]["shard"][1]
    for folder, plan in zip(folders, plans, strict=True):
        _require_alike(first, shared, folder, _without_shard(plan))
        number, of = plan["options"]["shard"]
        if of != total:
            raise CannotContinue(
                f"{first} is one of {total} shards, and {folder} is one of {of}; merge those of one cut"
            )
        if number in numbers:
            raise CannotContinue(f"{numbers[number]} and {folder} both hold shard {number}; name each shard once")
        numbers[number] = folder
    missing = [str(number) for number in range(total) if number not in numbers]
    if missing:
        raise CannotContinue(f"shard {', '.join(missing[:8])} of {total} is missing; name the folders of all shards")
    return shared, _merged([numbers[number] for number in range(total)])


def _merged(folders: Sequence[Path]) -> ScanState:
    merged: ScanState | None = None
    for folder in folders:
        state = read_state(RunFolder(folder))
        if state is None or not state.finished:
            raise CannotContinue(f"the shard in {folder} is not finished; give its command again to continue it")
        if merged is None:
            merged = ScanState(Strongest(state.strongest.maps), finished=True)
        merged.strongest.merge(state.strongest)
        merged.photos += state.photos
        merged.batches += state.batches
        merged.skipped += state.skipped
        for computed in state.computed:
            merged.add_computation(computed)
    assert merged is not None, "there is at least one folder"
    merged.skipped.sort()
    return merged


def _plan(folder: Path) -> dict[str, Any]:
    try:
        plan = json.loads((folder / PLAN_FILE).read_bytes())
        if plan["command"] == "atlas" and plan["options"]["shard"] is not None and plan["model"] and plan["photos"]:
            return dict(plan)
    except OSError as error:
        raise CannotContinue(
            f"{folder} holds no shard: {error.strerror}; make it with `zfserve atlas --shard`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CannotContinue(f"{folder / PLAN_FILE} is damaged; make this shard again") from error
    raise CannotContinue(f"{folder} holds no shard of an atlas; make it with `zfserve atlas --shard`")


def _without_shard(plan: dict[str, Any]) -> dict[str, Any]:
    return plan | {"options": plan["options"] | {"shard": None}}


def _require_alike(first: Path, one: dict[str, Any], second: Path, other: dict[str, Any]) -> None:
    """Raises CannotContinue if two plans differ in more than their shard."""
    if one["model"]["fingerprint"] != other["model"]["fingerprint"]:
        raise CannotContinue(f"{first} and {second} hold shards of different models; merge shards of one model")
    if one["photos"] != other["photos"]:
        raise CannotContinue(f"{first} and {second} hold shards of different photos; make both from the same folder")
    for name in sorted({*one["options"], *other["options"]}):
        if one["options"].get(name) != other["options"].get(name):
            was, is_now = (json.dumps(each["options"].get(name)) for each in (one, other))
            raise CannotContinue(
                f"{first} and {second} hold shards with {name} {was} and {is_now}; make both with the same options"
            )
    if one != other:
        raise CannotContinue(f"{first} and {second} hold shards of different releases of zfserve; make both again")
