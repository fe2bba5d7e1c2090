import argparse
import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import save_file
from zfserve_export.export_command import add_arguments, run
from zfserve_export.export_summary import find_faults, print_summary
from zfserve_export.exporter import INT8_PRECISIONS
from zfserve_model.checkpoint import Checkpoint, save_checkpoint
from zfserve_runtime.bundle import AccuracyEntry, Bundle, ParityEntry, Precision, load_bundle

SCHEMA_1 = Path(__file__).parents[1] / "bundles" / "schema-1"


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture
def workplace(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a working directory that holds only `weights.safetensors`. The console is wide enough for sentences."""
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
    assert list(bundle.manifest.artefacts) == ["fp32", "fp16", "int8", "int8-symmetric"]
    said = capsys.readouterr()
    assert "warning: INT8 is calibrated on only 12 photos" in said.err
    assert "12 photos" in said.out
    assert "100.0%" in said.out
    assert "wrote models/tiny/2.0" in said.out


@pytest.mark.parametrize("other", [("net.onnx",), ("--name", "mine"), ("--no-fp16",), ("--size", "8x8")])
def test_an_upgrade_takes_nothing_else(other: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parse("--upgrade", "models/zfnet", *other)) == 2
    assert "give no source and no other option" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0x8", "8x5000", "9" * 30, "8x"])
def test_an_impossible_size_is_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("net.onnx", "--size", size)
    assert "is no size; " in capsys.readouterr().err


def test_a_standard_deviation_that_is_nearly_zero_is_refused(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(parse("weights.safetensors", "--std", "1e-40", "1", "1")) == 2
    assert "--std has a number below 0.0001; give the standard deviation" in capsys.readouterr().err
    assert not (workplace / "models").exists()


def test_the_summary_of_all_precisions_fits_a_narrow_terminal(bundle: Bundle) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(console, bundle, seconds=1)
    table = console.export_text().splitlines()[1:]
    for precision, artefact in bundle.manifest.artefacts.items():
        (row,) = (line.split() for line in table if line.split()[:1] == [precision])
        assert row[1] == f"{(bundle.folder / artefact.file).stat().st_size / 1e6:.1f}"
        assert row[4:6] == ["12", "photos"], "nothing was cut off"
        assert row[7].endswith("%")


def test_a_bare_state_dict_gets_its_classes_from_the_labels(
    workplace: Path, checkpoint: Checkpoint, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--no-int8` also overrides calibration photos, and `--no-fp16` overrides the default."""
    save_file(checkpoint.network.state_dict(), workplace / "bare.safetensors")
    (workplace / "labels.tsv").write_text("a\tapple\nb\tbanana\nc\tcherry\n")
    less = ("--calibration", photo_folder, "--no-int8", "--no-fp16")
    assert run(parse("bare.safetensors", "--labels", "labels.tsv", *less)) == 0
    manifest = load_bundle(workplace / "models" / "zfnet-fig3" / "1").manifest
    assert [entry.label for entry in manifest.classes] == ["apple", "banana", "cherry"]
    assert list(manifest.artefacts) == ["fp32"]
    assert "parity is measured on noise only" in capsys.readouterr().err


def test_an_upgrade_says_what_it_wrote(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(SCHEMA_1, workplace / "small" / "1")
    assert run(parse("--upgrade", "small")) == 0
    assert "wrote small/2 with the same graphs (fp32, fp16, int8, int8-symmetric)" in capsys.readouterr().out
    assert run(parse("--upgrade", "small")) == 2
    assert "small/2 has schema 2 already; it needs no upgrade" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "weights/zfnet-imagenette.safetensors does not exist; run this in a checkout of zfserve"),
        (("other.safetensors",), "there is no file other.safetensors"),
        (("weights.safetensors", "--calibration", "nowhere"), "there is no folder nowhere"),
        (("weights.safetensors", "--validation", "."), "holds no class folders"),
        (("weights.safetensors", "--int8"), "INT8 needs photos to calibrate on; give a folder with --calibration"),
        (("weights.safetensors", "--name", "a/b"), "the name 'a/b' cannot be a folder's name"),
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


@pytest.mark.parametrize("precision", INT8_PRECISIONS)
def test_says_loudly_that_eight_bits_lose_more_than_a_point(bundle: Bundle, precision: Precision) -> None:
    assert find_faults(measured(bundle, precision, fp32=0.90, top1=0.895, agreement=0.99)) == []
    (fault,) = find_faults(measured(bundle, precision, fp32=0.90, top1=0.88, agreement=0.99))
    assert fault.startswith(f"{precision.upper()} LOSES 2.0 POINTS OF TOP-1 (90.0% to 88.0%)")


@pytest.mark.parametrize("precision", INT8_PRECISIONS)
def test_asks_for_the_accuracy_of_eight_bits_that_differ_unless_it_is_measured(
    bundle: Bundle, precision: Precision
) -> None:
    with_accuracy = measured(bundle, precision, fp32=0.90, top1=0.90, agreement=0.75)
    assert find_faults(with_accuracy) == []
    without = Bundle(bundle.folder, with_accuracy.manifest.model_copy(update={"accuracy": ()}))
    (fault,) = find_faults(without)
    assert fault.startswith(f"{precision} gives another top class than the network for 25% of 12 photos; measure its")


def measured(bundle: Bundle, precision: Precision, fp32: float, top1: float, agreement: float) -> Bundle:
    accuracy = (
        AccuracyEntry(precision="fp32", count=12, top1=fp32, top5=1),
        AccuracyEntry(precision=precision, count=12, top1=top1, top5=1),
    )
    parity = (
        ParityEntry(precision=precision, inputs="photos", count=12, max_difference=0.1, top1_agreement=agreement),
        ParityEntry(precision=precision, inputs="noise", count=8, max_difference=0.9, top1_agreement=0),
    )
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"accuracy": accuracy, "parity": parity}))
