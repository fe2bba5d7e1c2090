"""Tests engines that are damaged, folders that cannot be read or written, and builds that fail."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.engine_store import (
    H100,
    TUNED,
    Builder,
    Server,
    failing,
    names,
    on_card,
    quiet,
    reason,
    truncate,
    unprivileged,
)
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.store.identity import EngineIdentity
from zfserve_engines.store.store import EngineStore, NoValidEngine
from zfserve_engines.tensorrt.builder import BuildFailed

KEY = EngineIdentity.of(TUNED).key


def empty(file: Path) -> None:
    file.write_bytes(b"")


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(plan: Path) -> None:
    content = bytearray(plan.read_bytes())
    content[1] ^= 8
    plan.write_bytes(content)


def change_record(plan: Path, old: str, new: str) -> None:
    record = plan.with_suffix(".json")
    assert old in record.read_text()
    record.write_text(record.read_text().replace(old, new))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "its plan has 3 of 4 bytes"),
    "empty": (empty, "its plan has 0 of 4 bytes"),
    "a flipped bit": (flip_a_bit, "its plan differs from its digest"),
    "no plan": (lambda plan: plan.unlink(), "its plan is missing"),
    "no record": (lambda plan: plan.with_suffix(".json").unlink(), "its record is missing"),
    "half a record": (lambda plan: halve(plan.with_suffix(".json")), "this release cannot read its record"),
    "a record with a newer schema": (
        lambda plan: change_record(plan, '"schema_version": 1', '"schema_version": 2'),
        "this release cannot read its record",
    ),
    "a record of another GPU": (
        lambda plan: change_record(plan, "NVIDIA A10", "NVIDIA H100"),
        "its record was changed, or is another engine's",
    ),
    "a wrong digest": (lambda plan: change_record(plan, '"sha256": "', '"sha256": "0'), "differs from its digest"),
}
"""Functions that damage the engine with the file `plan`, each with the sentence that reports the damage."""


@pytest.mark.parametrize(("do", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_engine_is_refused_and_built_again(
    store: EngineStore, do: Callable[[Path], None], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    do(store.find_or_build(TUNED, Builder(b"plan"), quiet).file)
    assert sentence in (reason(store, TUNED) or "")
    with pytest.raises(NoValidEngine, match=sentence):
        store.find_or_build(TUNED, Builder(), quiet, on_invalid="refuse")
    store.find_or_build(TUNED, Builder(b"again"), quiet)
    assert f"engine {KEY[:12]} is refused: " in caplog.text
    assert sentence in caplog.text
    assert store.find(TUNED).plan == b"again"


def test_a_damaged_engine_of_another_request_is_ignored(store: EngineStore) -> None:
    store.find_or_build(on_card(TUNED, H100), Builder(), quiet).file.with_suffix(".json").write_text("{")
    assert reason(store, TUNED) is None


def test_the_verified_plan_is_the_returned_plan(store: EngineStore) -> None:
    store.find_or_build(TUNED, Builder(b"plan"), quiet)
    found = store.find(TUNED)
    found.file.write_bytes(b"evil")
    assert found.plan == b"plan"


@pytest.mark.parametrize("error", [BuildFailed("no"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_a_build_that_fails_leaves_nothing_behind(store: EngineStore, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        store.find_or_build(TUNED, failing(error), quiet)
    assert raised.value is error
    assert names(store) == set()
    assert store.find_or_build(TUNED, Builder(b"plan"), quiet).plan == b"plan"


def test_a_read_only_folder_can_be_read(open_folder: Path) -> None:
    store = EngineStore(open_folder)
    built = store.find_or_build(TUNED, Builder(b"plan"), quiet)
    open_folder.chmod(0o555)
    with unprivileged():
        assert store.find_or_build(TUNED, Builder(), quiet) == built
        server = Server()
        built.hold_lock_for(server)
        (entry,) = store.entries()
        assert store.is_in_use(entry)


@pytest.mark.parametrize("folder", [".", "below/it"])
def test_a_build_into_a_read_only_folder_is_an_error(open_folder: Path, folder: str) -> None:
    store, builder = EngineStore(open_folder / folder), Builder()
    open_folder.chmod(0o555)
    with unprivileged(), pytest.raises(EngineUnavailable) as refused:
        store.find_or_build(TUNED, builder, quiet)
    assert str(refused.value) == (
        f"there is no fp16 engine of zfnet 1 by tensorrt 11.0.0.114 in {store.folder} (`zfserve compile` builds one), "
        f"and {store.folder} cannot be written (Permission denied); name another folder with --engine-cache"
    )
    assert not builder.given


def test_an_unreadable_engine_is_refused(open_folder: Path) -> None:
    store = EngineStore(open_folder)
    file = store.find_or_build(TUNED, Builder(), quiet).file
    file.chmod(0)
    with unprivileged():
        assert "its plan cannot be read: Permission denied" in (reason(store, TUNED) or "")
    file.with_suffix(".json").chmod(0)
    with unprivileged():
        assert "its record cannot be read: Permission denied" in (reason(store, TUNED) or "")
