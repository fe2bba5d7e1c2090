import argparse
import re
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from conftest import ColourBundle
from fakes.engine_store import A10, AHEAD, H100, L4, TUNED, Builder, on_card, quiet, unprivileged
from rich.console import Console
from zfserve_engines import engines_command
from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.engines_command import StoreView, print_engines, prune_engines, verify_engines
from zfserve_engines.store.identity import EngineRequest, Host
from zfserve_engines.store.pruning import PruneRule
from zfserve_engines.store.store import EngineStore
from zfserve_runtime.file_lock import exclusive_lock

HERE = Host(A10, "Linux", "x86_64")


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def keep(store: EngineStore, request: EngineRequest = TUNED) -> Path:
    return store.find_or_build(request, Builder(), quiet).file


def key(file: Path) -> str:
    return file.stem[:12]


def view(store: EngineStore, gpu: GpuFacts | None = A10, graphs: frozenset[str] | None = None) -> StoreView:
    host = replace(HERE, gpu=gpu)
    return StoreView(store, store.entries(), host, {"tensorrt": "11.0.0.114"}, graphs)


def console() -> tuple[Console, StringIO]:
    text = StringIO()
    return Console(file=text, width=160), text


def zfserve_engines(*argv: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="zfserve engines")
    engines_command.add_arguments(parser)
    return engines_command.run(parser.parse_args([str(argument) for argument in argv]))


def listing(seen: StoreView) -> str:
    out, text = console()
    assert print_engines(out, seen) == 0
    return text.getvalue()


def row(text: str, file: Path) -> list[str]:
    """Returns the cells of the two lines of an engine."""
    lines = text.splitlines()
    (first,) = (number for number, line in enumerate(lines) if line.strip().startswith(f"{key(file)} "))
    return [cell for line in lines[first : first + 2] for cell in re.split(r"\s{2,}", line.strip())]


def test_lists_all_engines(store: EngineStore) -> None:
    tuned, ahead = keep(store), keep(store, AHEAD)
    text = listing(view(store))
    assert row(text, tuned) == [
        key(tuned), "zfnet 1", "tensorrt", "NVIDIA A10 (8.6)", "1, 8, 32", "0.0 MB", "yes",
        "fp16", "11.0.0.114", "just now",
    ]  # fmt: skip
    assert row(text, ahead)[2:4] == ["tensorrt-rtx", "8.6, 8.9"]
    assert row(text, ahead)[6] == "no"
    assert f"{key(ahead)}: it was built by tensorrt-rtx 1.7.1.116, which is not installed" in text


@pytest.mark.parametrize(
    ("gpu", "graphs", "note"),
    [
        (H100, None, "it was built for NVIDIA A10 (8.6), this is NVIDIA H100 (9.0)"),
        (None, None, "it was built for NVIDIA A10 (8.6), and there is no NVIDIA GPU here"),
        (A10, frozenset({"cd" * 32}), "it was built for other weights than the bundle's"),
    ],
)
def test_lists_why_an_engine_cannot_be_used(
    store: EngineStore, gpu: GpuFacts | None, graphs: frozenset[str] | None, note: str
) -> None:
    file = keep(store)
    assert f"{key(file)}: {note}\n" in listing(view(store, gpu, graphs))


def test_lists_damaged_engines_and_engines_that_are_being_built(store: EngineStore) -> None:
    file = keep(store)
    file.with_suffix(".json").unlink()
    text = listing(view(store))
    assert row(text, file)[:7] == [key(file), *"?????", "damaged"]
    assert f"{key(file)}: its record is missing" in text
    with exclusive_lock(file.with_suffix(".lock"), on_wait=None):
        text = listing(view(store))
    assert row(text, file)[6] == "being built"
    assert "missing" not in text


def test_an_empty_folder_is_reported(store: EngineStore) -> None:
    assert listing(view(store)) == f"there are no engines in {store.folder}\n"


@pytest.mark.parametrize(
    ("age", "shown"), [({}, "just now"), ({"minutes": 59}, "59 min old"), ({"hours": 47}, "1 d old")]
)
def test_ages_are_rounded_down(age: dict[str, float], shown: str) -> None:
    assert engines_command._age(timedelta(**age)) == shown


def test_verify_passes_sound_engines(store: EngineStore) -> None:
    file = keep(store)
    out, text = console()
    assert verify_engines(out, view(store)) == 0
    assert text.getvalue() == (
        f"sound {key(file)} (zfnet 1, fp16, tensorrt 11.0.0.114)\n0 of 1 engines damaged in {store.folder}\n"
    )


def test_verify_reads_every_plan(store: EngineStore) -> None:
    sound, changed = keep(store), keep(store, AHEAD)
    changed.write_bytes(b"nalp")
    assert "damaged" not in listing(view(store))  # a listing is fast, because it compares sizes only
    out, text = console()
    assert verify_engines(out, view(store)) == 1
    assert f"sound {key(sound)}" in text.getvalue()
    assert re.search(rf"damaged {key(changed)} .*: its plan differs from its digest", text.getvalue())


def test_verify_waits_for_no_build(store: EngineStore) -> None:
    file = keep(store)
    file.with_suffix(".json").unlink()
    out, text = console()
    with exclusive_lock(file.with_suffix(".lock"), on_wait=None):
        assert verify_engines(out, view(store)) == 0
    assert f"being built {key(file)}\n" in text.getvalue()


def test_prune_removes_the_engines_of_a_rule_and_says_why(store: EngineStore) -> None:
    stays, goes = keep(store), keep(store, on_card(TUNED, H100))
    out, text = console()
    assert prune_engines(out, view(store), PruneRule(unusable=True), dry_run=False) == 0
    assert text.getvalue() == (
        f"removed {key(goes)} (zfnet 1, fp16, tensorrt 11.0.0.114): "
        "it was built for NVIDIA H100 (9.0), this is NVIDIA A10 (8.6)\n"
    )
    assert [entry.file for entry in store.entries()] == [stays]


def test_prune_without_options_removes_only_damaged_engines(store: EngineStore) -> None:
    foreign, broken = keep(store, on_card(TUNED, H100)), keep(store)
    broken.unlink()
    leftover = store.folder / f".{broken.name}.1-1.partial"
    leftover.write_bytes(b"half")
    out, text = console()
    assert prune_engines(out, view(store), PruneRule(), dry_run=False) == 0
    assert set(store.folder.iterdir()) == {foreign, foreign.with_suffix(".json")}
    assert f"removed {leftover.name}\n" in text.getvalue()


def test_prune_removes_timing_caches_of_old_versions(store: EngineStore) -> None:
    for version in ("10.9", "11.0.0.114"):
        store.find_or_build(replace(TUNED, library_version=version), Builder(timing_cache=b"measured"), quiet)
    out, _ = console()
    assert prune_engines(out, view(store), PruneRule(old_versions=True), dry_run=False) == 0
    assert list(store.timing_caches().values()) == ["11.0.0.114"]
    assert [entry.record.identity.library_version for entry in store.entries() if entry.record] == ["11.0.0.114"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_prune_keeps_engines_that_are_in_use(store: EngineStore, dry_run: bool) -> None:
    engine = store.find_or_build(on_card(TUNED, L4), Builder(), quiet)
    out, text = console()
    engine.hold_lock_for(store)
    assert prune_engines(out, view(store), PruneRule(unusable=True), dry_run=dry_run) == 0
    assert text.getvalue() == f"kept {key(engine.file)} (zfnet 1, fp16, tensorrt 11.0.0.114): it is in use\n"
    assert engine.file.exists()


def test_a_dry_run_removes_nothing(store: EngineStore) -> None:
    keep(store, on_card(TUNED, H100))
    keep(store).unlink()
    (store.folder / ".x.engine.1-1.partial").touch()
    before = sorted(store.folder.iterdir())
    out, text = console()
    assert prune_engines(out, view(store), PruneRule(unusable=True), dry_run=True) == 0
    assert len(re.findall("^would remove ", text.getvalue(), re.MULTILINE)) == 3
    assert sorted(store.folder.iterdir()) == before


def test_the_engines_of_a_bundle_and_of_a_folder(
    colour_bundle: ColourBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = colour_bundle()
    file = keep(EngineStore.of(bundle))
    assert zfserve_engines("verify", bundle.folder) == 0
    assert zfserve_engines("verify", "--engine-cache", file.parent) == 0
    assert zfserve_engines("list", bundle.folder) == 0
    output = capsys.readouterr().out
    assert output.count(f"sound {key(file)}") == 2
    assert f"{key(file)}: it was built for other weights than the bundle's" in output
    file.write_bytes(b"nalp")
    assert zfserve_engines("verify", bundle.folder) == 1
    assert zfserve_engines("prune", bundle.folder, "--older-than", "0", "--dry-run") == 0
    assert file.exists()
    assert zfserve_engines("prune", bundle.folder, "--older-than", "0") == 0
    assert not file.exists()


def test_a_missing_bundle_or_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zfserve_engines("list", tmp_path) == 2
    assert zfserve_engines("verify", "--engine-cache", tmp_path / "none") == 2
    assert capsys.readouterr().err == (
        f"error: there is no bundle at {tmp_path}; `zfserve export` writes one\n"
        f"error: there is no folder {tmp_path / 'none'}\n"
    )


def test_a_folder_that_cannot_be_written_is_not_pruned(open_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = keep(EngineStore(open_folder))
    open_folder.chmod(0o555)
    with unprivileged():
        assert zfserve_engines("prune", "--engine-cache", open_folder, "--older-than", "0") == 2
    assert capsys.readouterr().err == f"error: {file.with_suffix('.lock')} cannot be changed: Permission denied\n"


@pytest.mark.parametrize("argv", [[], ["list", "x", "--engine-cache", "y"], ["prune", "--older-than", "soon"]])
def test_invalid_arguments_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        zfserve_engines(*argv)
    assert ended.value.code == 2
    assert "usage: zfserve engines" in capsys.readouterr().err
