from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes.toy_run import CPU, ToyRun
from torch import Tensor
from torch.nn import functional
from zfserve_model.networks import NetworkSpec
from zfserve_model.training.loop import Diverged, Interrupted, Trainer, pool_trunk
from zfserve_model.training.recipe import Stage, Step
from zfserve_model.training.state import EpochResult, TrainingState
from zfserve_model.training.teacher import PhotoTeacher
from zfserve_model.training.transfer import freeze_through


def nothing(step: Step, loss: float) -> None:
    pass


def train(run: ToyRun, state: TrainingState) -> TrainingState:
    for _ in run.trainer().run(state, nothing):
        pass
    return state


def weights_of(state: TrainingState) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.network.state_dict().items()}


def assert_same_weights(first: TrainingState, second: TrainingState) -> None:
    ours, theirs = weights_of(first), weights_of(second)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def without_times(result: EpochResult) -> EpochResult:
    return replace(result, images_per_s=0.0, elapsed_s=0.0)


def stop_after(questions: int) -> Callable[[], bool]:
    """Returns an `interrupted` that returns True from the given call on."""
    asked = 0

    def ask() -> bool:
        nonlocal asked
        asked += 1
        return asked >= questions

    return ask


def test_the_loop_learns_to_tell_colours_apart(toy_run: ToyRun) -> None:
    run = toy_run.with_recipe(stages=(Stage(64, 8), Stage(80, 1)), batch_size=6, label_smoothing=0.0)
    state = run.state(NetworkSpec("zfnet-fig3", classes=2, hidden_width=32, batch_norm=True))
    losses: list[float] = []
    results = list(run.trainer().run(state, lambda step, loss: losses.append(loss)))
    assert np.mean(losses[-6:]) < 0.6 * np.log(2), "chance is ln 2"
    assert [result.size for result in results] == [64] * 8 + [80]
    assert [result.val_photos for result in results] == [2] * 8 + [6]
    assert (results[-1].val_top1, results[-1].val_top5) == (1.0, 1.0)
    assert [result.fitted_top1 for result in results] == [None] * 8 + [1.0]
    assert results == state.results


def test_an_interrupted_run_ends_with_the_same_weights(toy_run: ToyRun) -> None:
    toy_run = toy_run.with_recipe(stages=(Stage(64, 1), Stage(80, 1)))
    whole = train(toy_run, toy_run.state())
    # Calls 1 to 3 follow the steps of the first epoch, call 4 comes in its evaluation.
    for stop_at, steps_done in {1: 1, 4: 3, 6: 5}.items():
        with pytest.raises(Interrupted):
            list(toy_run.trainer(interrupted=stop_after(stop_at)).run(toy_run.state(), nothing))
        resumed = toy_run.state()
        resumed.load(toy_run.folder / "state.pt")
        assert resumed.next_step == steps_done, stop_at
        train(toy_run, resumed)
        assert_same_weights(resumed, whole)
        assert list(map(without_times, resumed.results)) == list(map(without_times, whole.results))


def test_the_seed_decides_the_outcome(toy_run: ToyRun) -> None:
    run = toy_run.with_recipe(stages=(Stage(64, 1),))
    first = train(run, run.state())
    torch.manual_seed(77)  # the global generator's earlier state must not matter
    assert_same_weights(first, train(run, run.state()))
    other = run.with_recipe(seed=2)
    state = run.state()
    train(other, state)
    assert not torch.equal(weights_of(first)["trunk.conv1.weight"], weights_of(state)["trunk.conv1.weight"])


def test_the_state_is_saved_when_it_is_due_and_at_the_end(toy_run: ToyRun) -> None:
    for interval_s, expected in ((0.0, [(3, 1), (6, 2), (9, 3)]), (3600.0, [None, None, (9, 3)])):
        saved: list[tuple[int, int] | None] = []
        (toy_run.folder / "state.pt").unlink(missing_ok=True)
        for _ in toy_run.trainer(save_every_s=interval_s).run(toy_run.state(), nothing):
            state = toy_run.state()
            if (toy_run.folder / "state.pt").exists():
                state.load(toy_run.folder / "state.pt")
            saved.append((state.next_step, len(state.results)) if state.next_step else None)
        assert saved == expected


def test_a_state_is_saved_within_an_epoch_too(toy_run: ToyRun) -> None:
    steps = []

    def look(step: Step, loss: float) -> None:
        state = toy_run.state()
        if step.index:
            state.load(toy_run.folder / "state.pt")
            steps.append(state.next_step)

    list(toy_run.with_recipe(stages=(Stage(64, 1),)).trainer(save_every_s=0).run(toy_run.state(), look))
    assert steps == [1, 2]


def test_epochs_added_to_a_finished_run_are_trained(toy_run: ToyRun) -> None:
    run = toy_run.with_recipe(stages=(Stage(64, 1),))
    train(run, run.state())
    longer = toy_run.with_recipe(stages=(Stage(64, 2),))
    state = longer.state()
    state.load(toy_run.folder / "state.pt")
    train(longer, state)
    assert [(result.epoch, result.size) for result in state.results] == [(1, 64), (2, 64)]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_frozen_layers_stay_exactly_as_they_are(batch_norm: bool, toy_run: ToyRun) -> None:
    run = toy_run.with_recipe(stages=(Stage(64, 1),))
    spec = NetworkSpec("zfnet-fig3", classes=2, hidden_width=8, batch_norm=batch_norm)
    network = run.state(spec).network
    freeze_through(network, "conv3")
    state = TrainingState(network, run.state(spec).plan, CPU)
    before = weights_of(state)
    train(run, state)
    after = weights_of(state)
    changed = {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    norms = {"trunk.bn4", "trunk.bn5", "head.bn6", "head.bn7"} if batch_norm else set()
    assert changed == {"trunk.conv4", "trunk.conv5", "head.fc6", "head.fc7", "head.fc8"} | norms
    assert all(p.grad is None for name, p in network.named_parameters() if not p.requires_grad)
    assert sum(not p.requires_grad for p in network.parameters()) == (9 if batch_norm else 6)


def test_the_teacher_takes_its_share_of_the_loss(toy_run: ToyRun) -> None:
    scores = torch.randn(12, 1000, generator=torch.Generator().manual_seed(1)).half()
    losses: dict[float, float] = {}
    for share in (0.0, 0.25, 1.0):
        run = toy_run.with_recipe(teacher_weight=share, stages=(Stage(64, 1),))
        state = run.state()
        step, rows = Step(0, 0, 64, 0, 0.01), np.arange(4)
        teacher = PhotoTeacher(scores) if share else None
        losses[share], _ = run.trainer(teacher=teacher)._step(state, step, rows)
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * losses[1.0], rel=1e-4)


def test_a_loss_that_is_no_number_stops_the_run_before_it_spoils_the_weights(toy_run: ToyRun) -> None:
    state = toy_run.state()
    broken = toy_run.trainer(teacher=PhotoTeacher(torch.full((12, 1000), float("nan"))))
    state = toy_run.with_recipe(teacher_weight=0.5).state()
    before = [parameter.clone() for parameter in state.network.parameters()]
    with pytest.raises(Diverged, match=r"at step 0; lower --rate"):
        list(broken.run(state, nothing))
    assert all(map(torch.equal, before, state.network.parameters()))


def test_bfloat16_trains_too(toy_run: ToyRun) -> None:
    run = toy_run.with_recipe(batch_size=2)
    state = run.state()
    before = weights_of(state)
    loss, _ = run.trainer(autocast=torch.bfloat16)._step(state, Step(0, 0, 64, 0, 0.01), np.arange(5, 7))
    assert loss == pytest.approx(np.log(2), abs=0.7)
    assert {parameter.dtype for parameter in state.network.parameters()} == {torch.float32}
    assert not torch.equal(before["trunk.conv1.weight"], state.network.state_dict()["trunk.conv1.weight"])


def test_small_photos_fit_the_head_and_full_ones_take_the_network_itself(toy_run: ToyRun) -> None:
    network = toy_run.state().network.eval()
    with torch.inference_mode():
        for size in (64, 112):
            assert pool_trunk(network, torch.zeros(1, 3, size, size)).shape == (1, 256, 6, 6)
        images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        assert torch.equal(network.head(pool_trunk(network, images)), network(images))
        # At 160 pixels the adaptive pool turns 9 positions into 6.
        trunk = network.trunk[:-1](images[..., :160, :160])
        assert torch.equal(pool_trunk(network, images[..., :160, :160]), functional.adaptive_max_pool2d(trunk, 6))


class Killed(BaseException):
    pass


def test_steps_that_were_saved_are_not_done_again_after_a_kill_while_measuring(
    toy_run: ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(trainer: Trainer, state: TrainingState, schedule: object) -> EpochResult:
        raise Killed

    with monkeypatch.context() as killing:
        killing.setattr(Trainer, "_measure_epoch", measure)
        with pytest.raises(Killed):
            list(toy_run.trainer(save_every_s=0).run(toy_run.state(), nothing))
    resumed = toy_run.state()
    resumed.load(toy_run.folder / "state.pt")
    assert (resumed.next_step, resumed.results) == (3, [])
    assert_same_weights(train(toy_run, resumed), train(toy_run, toy_run.state()))
