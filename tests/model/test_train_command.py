import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from zfserve_model.checkpoint import load_checkpoint
from zfserve_model.devices import NoSuchDevice, choose_device
from zfserve_model.networks import NetworkSpec
from zfserve_model.train_command import (
    add_arguments,
    choose_precision,
    command_line,
    run,
    stop_on_signals,
)
from zfserve_model.weights_import import load_weights

SMALL = ("--architecture", "zfnet-fig3", "--hidden-width", "8", "--batch-size", "6", "--device", "cpu")
ONE_EPOCH = ("--stages", "224:1")


def parse(*words: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def train(data: Path, output: Path, *options: str | Path) -> int:
    return run(parse("--data", data, "--output", output, *options))


@pytest.fixture(scope="module")
def trained(toy_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the output folder of one finished run. Tests only read it."""
    output = tmp_path_factory.mktemp("runs") / "first"
    assert train(toy_photos, output, *SMALL, *ONE_EPOCH) == 0
    return output


def test_a_run_leaves_weights_log_pictures_and_recipe(trained: Path) -> None:
    checkpoint = load_checkpoint(trained / "weights.safetensors")
    assert checkpoint.network.spec == NetworkSpec("zfnet-fig3", classes=2, hidden_width=8)
    assert checkpoint.class_ids == ("n01440764", "n03394916")
    assert checkpoint.labels == ("tench", "French horn")
    assert len((trained / "log.csv").read_text().splitlines()) == 2
    for name in ("curves.png", "filters.png"):
        with Image.open(trained / name) as image:
            assert min(image.size) > 50
    recipe = json.loads((trained / "recipe.json").read_text())
    assert recipe["recipe"]["stages"] == [{"size": 224, "epochs": 1}]
    assert recipe["data"]["train"] == {"photos": 12, "by_class": {"n01440764": 6, "n03394916": 6}}
    assert recipe["last_epoch"]["val_photos"] == 6
    assert 0 <= recipe["last_epoch"]["fitted_top1"] <= 1
    (session,) = recipe["sessions"]
    assert session["command"].startswith("zfserve train --data ")
    assert session["command"].endswith("--hidden-width 8 --stages 224:1 --batch-size 6 --device cpu")


def test_the_same_command_only_writes_the_weights_again(
    toy_photos: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "again"
    output.mkdir()
    (output / "state.pt").write_bytes((trained / "state.pt").read_bytes())
    (tmp_path / "labels.json").write_text('{"n01440764": "Schleie", "n03394916": "Waldhorn"}')
    assert train(toy_photos, output, *SMALL, *ONE_EPOCH, "--labels", tmp_path / "labels.json") == 0
    assert "resuming at step 2 of 2" in capsys.readouterr().out
    first, again = (load_checkpoint(folder / "weights.safetensors") for folder in (trained, output))
    assert again.labels == ("Schleie", "Waldhorn")
    assert all(map(torch.equal, first.network.parameters(), again.network.parameters()))
    assert [s["first_step"] for s in json.loads((output / "recipe.json").read_text())["sessions"]] == [0, 2]
    assert train(toy_photos, output, *SMALL, *ONE_EPOCH, "--rate", "0.1") == 2
    assert "recipe.peak_rate was 0.03, now 0.1" in capsys.readouterr().err


def test_fine_tuning_leaves_frozen_layers_alone(toy_photos: Path, trained: Path, tmp_path: Path) -> None:
    start = trained / "weights.safetensors"
    # With an odd number of photos the two classes differ in size. Equal classes would leave the last bias unchanged.
    options = ("--from", start, "--freeze-through", "conv3", "--batch-size", "5", "--device", "cpu", *ONE_EPOCH)
    assert train(toy_photos, tmp_path, *options) == 0
    frozen = {f"trunk.conv{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")}
    # The change of one epoch can be too small for float16, in which the weights are written.
    before, state, after = (
        load_weights(file).network.state_dict()
        for file in (start, tmp_path / "state.pt", tmp_path / "weights.safetensors")
    )
    assert {name for name in before if torch.equal(before[name], state[name])} == frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["freeze_through"] == "conv3"
    assert len(recipe["start_digest"]) == 64


def test_fine_tuning_has_a_lower_rate_by_default(toy_photos: Path, trained: Path, tmp_path: Path) -> None:
    options = ("--from", trained / "weights.safetensors", "--batch-size", "6", "--device", "cpu", *ONE_EPOCH)
    assert train(toy_photos, tmp_path, *options) == 0
    assert json.loads((tmp_path / "recipe.json").read_text())["recipe"]["peak_rate"] == 0.003


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stages", "64:1"), "must be at 224"),
        (("--batch-size", "0"), "batch size"),
        (("--rate", "0"), "peak rate must be above 0"),
        (("--hidden-width", "0"), "hidden width must be at least 1"),
        (("--freeze-through", "conv3"), "needs --from"),
        (("--without", "conv9"), "there is no layer 'conv9'"),
        (("--snapshots", "1,64"), "--snapshots names epoch 64, but the run has 19"),
        (("--from", "absent.safetensors"), "leave out --hidden-width"),
        (("--labels", "absent.tsv"), "absent.tsv cannot be read"),
        (("--device", "abacus"), "there is no device 'abacus' here"),
        (("--data", "absent"), "is not a folder"),
    ],
)
def test_unusable_input_is_one_line_and_status_2(
    options: tuple[str, ...], message: str, toy_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(toy_photos, tmp_path / "out", *SMALL, *options) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


VARIANT = ("--architecture", "zfnet-fig3", "--batch-size", "6", "--device", "cpu", "--without", "conv3,conv4,fc6,fc7")


def test_a_variant_is_trained_kept_and_resumed_like_any_network(
    toy_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, options = tmp_path / "run", (*VARIANT, "--maps", "4,4,6", "--snapshots", "1")
    assert train(toy_photos, output, *options, *ONE_EPOCH) == 0
    assert f"keeps the weights of epochs 1 in {output / 'snapshots'}: 1.3 MB each" in capsys.readouterr().out
    spec = NetworkSpec("zfnet-fig3", 2, 256, removed=("conv3", "conv4", "fc6", "fc7"), maps=(96, 256, 4, 4, 6))
    files = [output / "weights.safetensors", output / "snapshots" / "epoch-001.safetensors", output / "state.pt"]
    assert [load_weights(file).network.spec for file in files] == [spec] * 3
    assert files[0].read_bytes() == files[1].read_bytes()
    assert train(toy_photos, output, *options, "--stages", "224:2") == 0
    assert "resuming at step 2 of 4" in capsys.readouterr().out
    assert train(toy_photos, output, *VARIANT, "--stages", "224:2") == 2
    assert "network.maps was [96, 256, 4, 4, 6], now []" in capsys.readouterr().err


def test_absent_weights_to_start_from_are_named(
    toy_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(toy_photos, tmp_path, "--from", "absent.safetensors") == 2
    assert "there is no file of weights at absent.safetensors" in capsys.readouterr().err


def test_sigterm_saves_the_state_and_says_how_to_go_on(toy_photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zfserve_model.train_command", "--data", toy_photos, "--output", tmp_path, *SMALL]
    process = subprocess.Popen(
        [*map(str, command), "--stages", "64:5000,224:1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    with process:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line.startswith("epoch 1/5001  64 px  step 1/2"):
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM, "".join(seen)
    assert f"the same command resumes from {tmp_path / 'state.pt'}" in seen[-1]
    assert load_weights(tmp_path / "state.pt").network.spec == NetworkSpec("zfnet-fig3", classes=2, hidden_width=8)
    assert not (tmp_path / "weights.safetensors").exists()


def test_signals_are_collected_and_their_handlers_given_back() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signals() as received:
        assert received == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    with stop_on_signals():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_command_line_can_be_typed_again() -> None:
    words = ("--data", "my photos", "--from", "w.pt", "--teacher", "views", "--seed", "3")
    assert command_line(parse(*words)) == "zfserve train --data 'my photos' --from w.pt --teacher views --seed 3"


def test_devices_and_precisions() -> None:
    cpu = choose_device("cpu")
    assert cpu == torch.device("cpu")
    with pytest.raises(NoSuchDevice, match="'cuda:99'"):
        choose_device("cuda:99")
    assert choose_precision("bf16", cpu) == torch.bfloat16
    assert choose_precision("fp32", cpu) == torch.float32
    native = torch.cpu.get_capabilities()
    expected = torch.bfloat16 if native.get("avx512_bf16") or native.get("amx_bf16") else torch.float32
    assert choose_precision("auto", cpu) == expected
