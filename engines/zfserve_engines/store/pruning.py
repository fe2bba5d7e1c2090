"""Which engines of a store can go, and why. Called by `zfserve engines prune`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from zfserve_engines.store.record import StoreEntry
from zfserve_engines.tensorrt.settings import TensorRTLibrary

Versions = Mapping[TensorRTLibrary, str]
"""A version of each library that is there."""


@dataclass(frozen=True)
class PruneRule:
    """What is removed beside engines that are damaged.

    Attributes:
        unusable: what this machine cannot use, though another may.
        older_than: what was built longer ago.
        old_versions: what was built by any but the newest version of its library, as installed or in the store.
    """

    unusable: bool = False
    older_than: timedelta | None = None
    old_versions: bool = False


def reason_to_remove(
    entry: StoreEntry, rule: PruneRule, faults: Sequence[str], newest: Versions, now: datetime
) -> str | None:
    """As a sentence without its full stop; None for an engine that stays.

    Args:
        faults: why this machine cannot use it.
        newest: from `newest_versions`.
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
    """The newest of each library, as installed or as it built an engine."""
    newest = dict(installed)
    for entry in entries:
        if entry.record:
            identity = entry.record.identity
            library = identity.settings.library
            if is_older(newest.get(library, ""), identity.library_version):
                newest[library] = identity.library_version
    return newest


def is_older(version: str, than: str) -> bool:
    """Numbers are compared as numbers; no version at all is the oldest."""
    return _numbers(version) < _numbers(than)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
