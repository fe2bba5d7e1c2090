"""Tests that a run continues only with the options, the model and the photos with which it began."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from zfserve.results import ModelIdentity
from zfserve_studies.run_folder import (
    CannotContinue,
    RunFolder,
    RunPlan,
    photos_digest,
    require_same_model,
    write_atomically,
)

PLAN = RunPlan("atlas", ModelIdentity("zfnet", "3", "ab12"), "d1", {"layer": "conv5", "maps": (1, 2)})


def test_the_same_run_continues(tmp_path: Path) -> None:
    run = RunFolder.begin(tmp_path / "run", PLAN)
    assert run.read("part.json") is None
    run.write("part.json", b"1")
    again = RunFolder.begin(tmp_path / "run", replace(PLAN, model=ModelIdentity("zfnet", "4", "ab12")))
    assert again.read("part.json") == b"1"
    assert sorted(file.name for file in run.folder.iterdir()) == ["part.json", "run.json"]


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (replace(PLAN, command="transfer"), "holds a run of `zfserve atlas`; start again in another folder"),
        (replace(PLAN, model=ModelIdentity("zfnet", "3", "cd34")), "a run with other weights, of zfnet; serve these"),
        (replace(PLAN, options={"layer": "conv4", "maps": [1, 2]}), 'a run with layer "conv5", and not "conv4"; give'),
        (replace(PLAN, options={"layer": "conv5"}), "a run with maps [1, 2], and not null; give the same options"),
        (replace(PLAN, photos="d2"), "the photos have changed since the run in"),
    ],
)
def test_another_run_is_refused_in_one_sentence(tmp_path: Path, plan: RunPlan, sentence: str) -> None:
    RunFolder.begin(tmp_path, PLAN)
    with pytest.raises(CannotContinue) as refused:
        RunFolder.begin(tmp_path, plan)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(CannotContinue, match="cannot be used: Not a directory"):
        RunFolder.begin(file, PLAN)
    with pytest.raises(CannotContinue, match=r"has files and no run\.json; name an empty or new folder"):
        RunFolder.begin(tmp_path, PLAN)
    run = RunFolder.begin(tmp_path / "run", PLAN)
    for damaged in (b"{", b"[]"):
        run.write("run.json", damaged)
        with pytest.raises(CannotContinue, match=r"run\.json is damaged; delete"):
            RunFolder.begin(run.folder, PLAN)
    run.write("run.json", json.dumps(PLAN.document() | {"schema": 0}).encode())
    with pytest.raises(CannotContinue, match="another release"):
        RunFolder.begin(run.folder, PLAN)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "part"
    write_atomically(file, b"old")
    with pytest.raises(TypeError):
        write_atomically(file, "no bytes")  # type: ignore[arg-type]
    assert [each.name for each in tmp_path.iterdir()] == ["part"]
    assert file.read_bytes() == b"old"


def test_the_digest_of_photos_knows_names_and_sizes(tmp_path: Path) -> None:
    def written(folder: str, **sizes: int) -> str:
        root = tmp_path / folder
        root.mkdir()
        for name, size in sizes.items():
            (root / name).write_bytes(bytes(size))
        return photos_digest([root / name for name in sizes], root)

    first = written("a", x=1, y=2)
    assert written("elsewhere", x=1, y=2) == first
    assert len({first, written("fewer", x=1), written("renamed", x=1, z=2), written("larger", x=1, y=3)}) == 4


def test_another_model_ends_the_study() -> None:
    first = ModelIdentity("zfnet", "3", "ab12")
    require_same_model(first, ModelIdentity("zfnet", "4", "ab12"))
    with pytest.raises(
        CannotContinue, match=r"answers with zfnet 4, and the study began with zfnet 3; name .* zfnet:3"
    ):
        require_same_model(first, ModelIdentity("zfnet", "4", "cd34"))
