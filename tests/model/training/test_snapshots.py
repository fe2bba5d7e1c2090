from pathlib import Path

import pytest
from fakes.toy_run import COLOURS, ToyRun
from zfserve_model.networks import NetworkSpec
from zfserve_model.training.loop import Interrupted, Trainer
from zfserve_model.training.recipe import RecipeError, Stage, Step
from zfserve_model.training.snapshots import Snapshots, parse_epochs, snapshot_file
from zfserve_model.training.state import TrainingState
from zfserve_model.weights_import import load_weights


def keeper(folder: Path, *epochs: int) -> Snapshots:
    return Snapshots(folder, epochs, tuple(COLOURS), ("red", "blue"))


def nothing(step: Step, loss: float) -> None:
    pass


def contents(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(run.glob("snapshots/*"))}


def test_the_weights_of_chosen_epochs_are_kept_as_checkpoints(toy_run: ToyRun) -> None:
    run = toy_run.with_recipe(stages=(Stage(64, 3),))
    state = run.state()
    for _ in run.trainer(keep_epoch=keeper(run.folder, 1, 3).keep).run(state, nothing):
        pass
    assert list(contents(run.folder)) == ["epoch-001.safetensors", "epoch-003.safetensors"]
    first, last = (load_weights(snapshot_file(run.folder, epoch)) for epoch in (1, 3))
    assert last.class_ids == tuple(COLOURS)
    # The last snapshot holds the weights of the finished run, in float16.
    bias = state.network.state_dict()["head.fc8.bias"]
    assert last.network.state_dict()["head.fc8.bias"].equal(bias.half().float())
    assert not first.network.state_dict()["head.fc8.bias"].equal(bias.half().float())


class Killed(BaseException):
    pass


def test_no_snapshot_is_lost_or_changed_by_interruptions(toy_run: ToyRun) -> None:
    run = toy_run.with_recipe(stages=(Stage(64, 3),))
    list(run.trainer(keep_epoch=keeper(run.folder, 1, 2, 3).keep).run(run.state(), nothing))
    whole = contents(run.folder)
    other = ToyRun(run.recipe, run.train, run.validation, run.folder / "other")
    other.folder.mkdir()
    kept = keeper(other.folder, 1, 2, 3)

    def stopping(state: TrainingState, trainer: Trainer) -> None:
        with pytest.raises((Interrupted, Killed)):
            list(trainer.run(state, nothing))

    stopping(other.state(), other.trainer(keep_epoch=kept.keep, interrupted=lambda: bool(contents(other.folder))))

    def killed(network: object, epoch: int) -> None:
        raise Killed  # the process ends before the snapshot of epoch 2

    state = other.state()
    state.load(other.folder / "state.pt")
    stopping(state, other.trainer(keep_epoch=killed, save_every_s=0))
    state = other.state()
    state.load(other.folder / "state.pt")
    assert len(state.results) == 1, "the state does not count an epoch whose weights are not kept"
    list(other.trainer(keep_epoch=kept.keep).run(state, nothing))
    assert contents(other.folder) == whole


def test_epochs_are_parsed_and_sorted() -> None:
    assert parse_epochs("1, 5,2,2") == (1, 2, 5)
    for text in ("", "0,1", "-1", "first", "1,,2"):
        with pytest.raises(RecipeError, match=r"--snapshots .* as in 1,2,5,10"):
            parse_epochs(text)


def test_impossible_snapshots_are_refused(tmp_path: Path) -> None:
    keeper(tmp_path).require_possible(6, 3)
    keeper(tmp_path, 1, 6).require_possible(6, 0)
    with pytest.raises(RecipeError, match="names epoch 64, but the run has 6"):
        keeper(tmp_path, 1, 64).require_possible(6, 0)
    with pytest.raises(RecipeError, match="epoch 2 of this run is over and its weights were not kept"):
        keeper(tmp_path, 2, 4).require_possible(6, 3)


def test_the_disk_use_is_said(tmp_path: Path) -> None:
    text = keeper(tmp_path, 1, 2, 5).describe(NetworkSpec("zfnet-fig3", 10, 256))
    # The convolutions have 3,726,464 weights and biases, the other layers 2,427,914, of two bytes each.
    assert text.endswith("snapshots: 12.3 MB each, 36.9 MB in all")
    assert "epochs 1, 2, 5 in" in text
