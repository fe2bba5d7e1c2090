from dataclasses import replace

import pytest
import torch
from fakes.toy_run import ToyRun
from zfserve_model.checkpoint import CheckpointError
from zfserve_model.networks import NetworkSpec
from zfserve_model.training.recipe import Recipe, RecipeError, Stage
from zfserve_model.training.state import EpochResult, Plan, StateError, Tally
from zfserve_model.weights_import import load_weights

PLAN = Plan(Recipe(stages=(Stage(128, 2), Stage(224, 1))), NetworkSpec(), ("a", "b"), photos=12)
RESULT = EpochResult(1, 64, 0.1, 0.7, 0.5, 0.7, 0.5, 1.0, 6, 10.0, 1.0)


def test_the_same_plan_continues() -> None:
    PLAN.require_continues(PLAN.document())


@pytest.mark.parametrize("stages", [(Stage(128, 2), Stage(224, 2)), (Stage(128, 2), Stage(224, 1), Stage(224, 1))])
def test_epochs_may_be_added_at_the_end(stages: tuple[Stage, ...]) -> None:
    replace(PLAN, recipe=replace(PLAN.recipe, stages=stages)).require_continues(PLAN.document())


@pytest.mark.parametrize("stages", [(Stage(128, 3), Stage(224, 1)), (Stage(224, 3),), (Stage(128, 1), Stage(224, 1))])
def test_epochs_may_not_be_changed_or_dropped(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.stages was"):
        replace(PLAN, recipe=replace(PLAN.recipe, stages=stages)).require_continues(PLAN.document())


def test_every_difference_of_plans_is_named() -> None:
    other = Plan(replace(PLAN.recipe, seed=2), NetworkSpec(hidden_width=8), ("a", "c"), 13, "ab", "conv3")
    with pytest.raises(RecipeError) as raised:
        other.require_continues(PLAN.document())
    for change in (
        "recipe.seed was 1, now 2",
        "network.hidden_width was 4096, now 8",
        "class_ids was ['a', 'b'], now ['a', 'c']",
        "photos was 12, now 13",
        "start_digest was None, now ab",
        "freeze_through was None, now conv3",
    ):
        assert change in str(raised.value)


def test_other_photos_make_another_run() -> None:
    begun = replace(PLAN, listing="ab12")
    begun.require_continues(begun.document())
    with pytest.raises(RecipeError, match="another plan: training photos were added, removed, renamed or changed"):
        replace(PLAN, listing="cd34").require_continues(begun.document())
    older = begun.document()
    del older["listing"], older["network"]["removed"], older["network"]["maps"]  # states of older releases lack these
    begun.require_continues(older)


def test_what_is_saved_is_loaded(toy_run: ToyRun) -> None:
    file = toy_run.folder / "state.pt"
    saved = toy_run.with_recipe(teacher_weight=0.5).state()
    saved.close_epoch(RESULT)
    saved.count_step(0.5, hits=3, photos=4, seconds=2.0)
    saved.sessions.append({"command": "zfserve train"})
    saved.save(file)
    loaded = toy_run.with_recipe(teacher_weight=0.5).state()
    loaded.load(file)
    assert (loaded.next_step, loaded.elapsed_s, loaded.results) == (1, 2.0, [RESULT])
    assert loaded.tally == Tally(loss_sum=2.0, hits=3, photos=4, seconds=2.0)
    assert loaded.sessions == saved.sessions
    assert not file.with_suffix(".partial").exists()


def test_the_seed_decides_the_distillation_layer(toy_run: ToyRun) -> None:
    layers = [toy_run.with_recipe(teacher_weight=0.5, seed=seed).state().teacher_layer for seed in (1, 1, 2)]
    first, again, other = (layer.weight for layer in layers if layer)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_state_of_the_first_release_is_taken(toy_run: ToyRun) -> None:
    file = toy_run.folder / "state.pt"
    saved = toy_run.state()
    saved.next_step = 5
    saved.save(file)
    document = torch.load(file, weights_only=True)
    torch.save({key: document[key] for key in document.keys() - {"plan", "tally", "sessions"}}, file)
    loaded = toy_run.with_recipe(seed=1).state()
    loaded.load(file)
    assert (loaded.next_step, loaded.tally, loaded.sessions) == (5, Tally(), [])


def test_another_plan_is_refused(toy_run: ToyRun) -> None:
    toy_run.state().save(toy_run.folder / "state.pt")
    with pytest.raises(RecipeError, match=r"peak_rate was 0\.03, now 0\.5"):
        toy_run.with_recipe(peak_rate=0.5).state().load(toy_run.folder / "state.pt")


@pytest.mark.parametrize("content", [b"", b"no zip at all", None])
def test_files_that_are_no_state_are_refused(content: bytes | None, toy_run: ToyRun) -> None:
    file = toy_run.folder / "state.pt"
    if content is None:
        torch.save({"network": {}}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(StateError, match=r"state\.pt"):
        toy_run.state().load(file)


def test_a_state_that_cannot_be_written_is_an_error_and_leaves_nothing(toy_run: ToyRun) -> None:
    with pytest.raises(OSError, match="cannot be written"):
        toy_run.state().save(toy_run.folder / "nowhere" / "state.pt")


@pytest.mark.parametrize("contrast_norm", [False, True])
def test_a_state_says_whether_its_network_has_a_contrast_norm(toy_run: ToyRun, contrast_norm: bool) -> None:
    spec = NetworkSpec("zfnet-fig3", classes=2, hidden_width=8, batch_norm=True, contrast_norm=contrast_norm)
    file = toy_run.folder / "state.pt"
    toy_run.state(spec).save(file)
    assert load_weights(file).network.spec.contrast_norm is contrast_norm
    with pytest.raises(CheckpointError, match="leave out those options"):
        load_weights(file, contrast_norm=not contrast_norm)
