"""Decides which engines of a store are removed, and why. The command `zfserve engines prune` calls it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from zfserve_engines.store.record import StoreEntry
from zfserve_engines.tensorrt.settings import TensorRTLibrary

Versions = Mapping[TensorRTLibrary, str]
"""The version of each library. A library that is not installed has no entry."""


@dataclass(frozen=True)
class PruneRule:
    """Selects the engines that are removed in addition to damaged engines.

    Attributes:
        unusable: True removes engines that this machine cannot use, even if another machine can.
        older_than: removes engines that are older than this; None: age does not matter.
        old_versions: True removes engines of a library version that is older than the newest one, which may be the
            installed version or that of another engine in the store.
    """

    unusable: bool = False
    older_than: timedelta | None = None
    old_versions: bool = False


def reason_to_remove(
    entry: StoreEntry, rule: PruneRule, faults: Sequence[str], newest: Versions, now: datetime
) -> str | None:
    """Returns why an engine is removed, as a sentence without a full stop; None for an engine that stays.

    Args:
        entry: the engine.
        rule: selects the engines to remove.
        faults: the reasons why this machine cannot use the engine.
        newest: the newest version of each library, from `newest_versions`.
        now: the current time.
    """
    if entry.damage or entry.record is None:
        return entry.damage
    identity, age = entry.record.identity, now - entry.record.created_at
    library = identity.settings.library
    if rule.unusable and faults:
        return faults[0]
    if rule.old_versions and is_older(identity.library_version, newest[library]):
        return f"it was built by {library} {identity.library_version}, and {newest[library]} is newer"
    if rule.older_than is not None and age > rule.older_than:
        return f"it was built {age.days} days ago"
    return None


def newest_versions(entries: Iterable[StoreEntry], installed: Versions) -> dict[TensorRTLibrary, str]:
    """Returns the newest version of each library that is installed or that built an engine."""
    newest = dict(installed)
    for entry in entries:
        if entry.record:
            identity = entry.record.identity
            library = identity.settings.library
            if is_older(newest.get(library, ""), identity.library_version):
                newest[library] = identity.library_version
    return newest


def is_older(version: str, than: str) -> bool:
    """Returns True if `version` is older than `than`. Compares number by number; an empty version is the oldest."""
    return _numbers(version) < _numbers(than)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
