import argparse
import signal
from pathlib import Path

import pytest
from safetensors.torch import save_file
from zfserve_export.export_command import add_arguments, find_faults, run, sigterm_as_exit
from zfserve_model.checkpoint import Checkpoint, save_checkpoint
from zfserve_runtime.bundle import AccuracyEntry, Bundle, ParityEntry, load_bundle


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture
def workplace(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with `weights.safetensors`, and a console wide enough for whole sentences."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    save_checkpoint(checkpoint, tmp_path / "weights.safetensors")
    return tmp_path


def test_writes_a_bundle_and_says_what_it_is_worth(
    workplace: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = parse("weights.safetensors", "--photos", photo_folder, "--int8", "--name", "tiny", "--version", "2.0")
    assert run(arguments) == 0
    bundle = load_bundle(workplace / "models" / "tiny")
    assert bundle.manifest.version == "2.0"
    assert list(bundle.manifest.artefacts) == ["fp32", "int8"]
    said = capsys.readouterr()
    assert "warning: INT8 is calibrated on 12 photos only" in said.err
    assert "12 photos" in said.out
    assert "100.0%" in said.out
    assert "wrote models/tiny/2.0" in said.out


def test_a_bare_state_dict_gets_its_classes_from_the_labels(
    workplace: Path, checkpoint: Checkpoint, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And `--no-int8` overrules photos to calibrate on."""
    save_file(checkpoint.network.state_dict(), workplace / "bare.safetensors")
    (workplace / "labels.tsv").write_text("a\tapple\nb\tbanana\nc\tcherry\n")
    assert run(parse("bare.safetensors", "--labels", "labels.tsv", "--calibration", photo_folder, "--no-int8")) == 0
    manifest = load_bundle(workplace / "models" / "zfnet-fig3" / "1").manifest
    assert [entry.label for entry in manifest.classes] == ["apple", "banana", "cherry"]
    assert list(manifest.artefacts) == ["fp32"]
    assert "parity is measured on noise alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "weights/zfnet-imagenette.safetensors is not here; run this in a checkout of zfserve"),
        (("other.safetensors",), "there is no file of weights at other.safetensors"),
        (("weights.safetensors", "--calibration", "nowhere"), "there is no folder nowhere"),
        (("weights.safetensors", "--validation", "."), "holds no class folders"),
        (("weights.safetensors", "--int8"), "INT8 needs photos to calibrate on; give a folder with --calibration"),
        (("weights.safetensors", "--name", "a/b"), "the name 'a/b' cannot name a folder"),
        (("weights.safetensors", "--labels", "weights.safetensors"), "cannot be read as labels"),
        (("weights.safetensors", "--output", "weights.safetensors"), "Not a directory"),
    ],
)
def test_unusable_input_is_one_line_and_exit_2(
    workplace: Path, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(parse(*arguments)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert [entry.name for entry in workplace.iterdir()] == ["weights.safetensors"]


def test_says_loudly_that_int8_loses_more_than_a_point(bundle: Bundle) -> None:
    assert find_faults(measured(bundle, fp32=0.90, int8=0.895, agreement=0.99)) == []
    (fault,) = find_faults(measured(bundle, fp32=0.90, int8=0.88, agreement=0.99))
    assert fault.startswith("INT8 LOSES 2.0 POINTS OF TOP-1 (90.0% to 88.0%)")
    (fault,) = find_faults(measured(bundle, fp32=0.90, int8=0.90, agreement=0.75))
    assert fault.startswith("INT8 names another class than the network for 25% of 12 photos")


def measured(bundle: Bundle, fp32: float, int8: float, agreement: float) -> Bundle:
    accuracy = (
        AccuracyEntry(precision="fp32", count=12, top1=fp32, top5=1),
        AccuracyEntry(precision="int8", count=12, top1=int8, top5=1),
    )
    parity = (
        ParityEntry(precision="int8", inputs="photos", count=12, max_difference=0.1, top1_agreement=agreement),
        ParityEntry(precision="int8", inputs="noise", count=8, max_difference=0.9, top1_agreement=0),
    )
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"accuracy": accuracy, "parity": parity}))


def test_sigterm_unwinds_the_stack() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, sigterm_as_exit():
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
