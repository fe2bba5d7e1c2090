from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fakes.engine_store import AHEAD, TUNED, Builder, quiet
from zfserve_engines.store.identity import EngineRequest
from zfserve_engines.store.pruning import PruneRule, is_older, newest_versions, reason_to_remove
from zfserve_engines.store.record import StoreEntry
from zfserve_engines.store.store import EngineStore
from zfserve_engines.tensorrt.settings import TensorRTLibrary

NEWEST: dict[TensorRTLibrary, str] = {"tensorrt": "11.0.0.114", "tensorrt-rtx": "1.7.1.116"}
ALL = PruneRule(unusable=True, older_than=timedelta(days=30), old_versions=True)


def entry_of(folder: Path, request: EngineRequest = TUNED) -> StoreEntry:
    return StoreEntry.read(EngineStore(folder).find_or_build(request, Builder(), quiet).file)


@pytest.mark.parametrize(
    ("rule", "faults", "newest", "days", "reason"),
    [
        (ALL, [], "11.0.0.114", 29, None),
        (PruneRule(), ["it is another's"], "12.0", 1000, None),
        (PruneRule(unusable=True), ["it is another's", "and old"], "12.0", 1000, "it is another's"),
        (
            PruneRule(old_versions=True),
            ["x"],
            "11.0.0.120",
            0,
            "it was built by tensorrt 11.0.0.114, and 11.0.0.120 is newer",
        ),
        (PruneRule(older_than=timedelta(days=30)), ["x"], "12.0", 31, "it was built 31 days ago"),
        (PruneRule(older_than=timedelta(days=0)), [], "12.0", 0.5, "it was built 0 days ago"),
    ],
)
def test_a_rule_removes_the_engines_that_it_names(
    tmp_path: Path, rule: PruneRule, faults: list[str], newest: str, days: float, reason: str | None
) -> None:
    entry, now = entry_of(tmp_path), datetime.now(UTC) + timedelta(days=days)
    assert reason_to_remove(entry, rule, faults, NEWEST | {"tensorrt": newest}, now) == reason


def test_every_rule_removes_damaged_engines(tmp_path: Path) -> None:
    entry = entry_of(tmp_path)
    entry.file.unlink()
    damaged = StoreEntry.read(entry.file)
    assert reason_to_remove(damaged, PruneRule(), [], NEWEST, datetime.now(UTC)) == "its plan is missing"


def test_the_newest_version_is_installed_or_in_the_store(tmp_path: Path) -> None:
    entries = [entry_of(tmp_path, request) for request in (TUNED, AHEAD)]
    assert newest_versions(entries, {}) == NEWEST
    assert newest_versions(entries, {"tensorrt": "11.0.0.2", "tensorrt-rtx": "1.10"}) == NEWEST | {
        "tensorrt-rtx": "1.10"
    }
    assert newest_versions([], {}) == {}


def test_versions_are_compared_as_numbers() -> None:
    assert is_older("1.7.1.116", "1.10")
    assert is_older("", "1")
    assert not is_older("11.0", "11.0")
