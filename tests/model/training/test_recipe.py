import math

import pytest
from zfserve_model.training.recipe import Recipe, RecipeError, Schedule, Stage, parse_stages


def test_stages_are_pairs_of_size_and_epochs() -> None:
    assert parse_stages("128:16,224:3") == (Stage(128, 16), Stage(224, 3))


@pytest.mark.parametrize("text", ["", "128", "128:2:3", "a:b", "224:1,"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="SIZE:EPOCHS pairs"):
        parse_stages(text)


def test_the_last_stage_must_be_what_is_served() -> None:
    with pytest.raises(RecipeError, match="must be at 224"):
        parse_stages("224:3,128:1")


@pytest.mark.parametrize("stages", [(), (Stage(32, 1),), (Stage(256, 1),), (Stage(224, 0),)])
def test_stages_must_be_trainable(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(RecipeError, match="64 to 224 pixels and at least one epoch"):
        Recipe(stages=stages)


def test_all_faults_of_a_recipe_are_named_at_once() -> None:
    with pytest.raises(RecipeError) as raised:
        Recipe(stages=(Stage(32, 1), Stage(128, 0)), batch_size=1, peak_rate=0, label_smoothing=1)
    for fault in ("64 to 224 pixels and at least one epoch", "batch size", "peak rate", "label smoothing"):
        assert fault in str(raised.value)


def test_the_rate_rises_then_follows_a_cosine_over_pixels_seen() -> None:
    # 12 photos give 3 steps an epoch. An epoch at 224 pixels is four times the work of one at 112.
    schedule = Schedule(Recipe(stages=(Stage(112, 4), Stage(224, 3)), batch_size=4, peak_rate=0.1, warmup=0.25), 12)
    assert (len(schedule), schedule.epochs, schedule.steps_per_epoch) == (21, 7, 3)
    assert schedule.total_work == 16 * 3 * 112**2
    rates = [schedule.step(index).rate for index in range(21)]
    assert rates[:12] == sorted(rates[:12]), "a quarter of the work is warm-up: all four small epochs"
    assert rates[0] == pytest.approx(0.1 * 1e-3 / 0.251)
    assert rates[12] == pytest.approx(0.1)
    assert rates[12:] == sorted(rates[12:], reverse=True)
    assert rates[18] == pytest.approx(0.05 * (1 + math.cos(math.pi * (0.75 - 0.25) / 0.75)))


def test_steps_know_their_place() -> None:
    schedule = Schedule(Recipe(stages=(Stage(64, 1), Stage(224, 1)), batch_size=4), 11)
    places = [(s.index, s.epoch, s.batch, s.size) for s in map(schedule.step, range(4))]
    assert places == [(0, 0, 0, 64), (1, 0, 1, 64), (2, 1, 0, 224), (3, 1, 1, 224)]
    assert [schedule.work_before(index) for index in range(5)] == [
        0, 64**2, 2 * 64**2, 2 * 64**2 + 224**2, schedule.total_work,
    ]  # fmt: skip


def test_fewer_photos_than_a_batch_still_make_a_step() -> None:
    assert Schedule(Recipe(batch_size=64), 5).steps_per_epoch == 1
