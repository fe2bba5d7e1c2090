"""Decides which engines of a store are removed, and why. Called by `zfserve engines prune`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from zfserve_engines.store.record import StoreEntry
from zfserve_engines.tensorrt.settings import TensorRTLibrary

Versions = Mapping[TensorRTLibrary, str]
"""The version of each library; a library that is missing has none."""


@dataclass(frozen=True)
class PruneRule:
    """Names the engines that are removed in addition to damaged ones.

    Attributes:
        unusable: True removes engines that this machine cannot use, although another machine might.
        older_than: removes engines that are older than this; None: age does not matter.
        old_versions: True keeps only the engines of the newest version of each library, as installed or in the store.
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
        rule: names the engines to remove.
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
        return f"it was built by {library} {identity.library_version}, and there is {newest[library]}"
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
    """Returns whether a version is older. Numbers are compared as numbers, and an empty version is the oldest."""
    return _numbers(version) < _numbers(than)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
