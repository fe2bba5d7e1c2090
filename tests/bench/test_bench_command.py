import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from zfserve_bench.bench_command import (
    BENCHMARKS,
    HELD,
    MISSED,
    ONLY_BY_NAME,
    UNUSABLE,
    UnknownBenchmark,
    add_arguments,
    choose,
    exit_status,
    make_config,
    run,
)
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_runtime.bundle import Bundle

SAMPLES = Path(__file__).parent.parent.parent / "samples"


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_names_choose_benchmarks() -> None:
    assert choose([]) == [name for name in BENCHMARKS if name not in ONLY_BY_NAME]
    assert choose(["soak"]) == ["soak"]
    assert choose(["decode", "throughput"]) == ["throughput", "decode"]
    with pytest.raises(UnknownBenchmark, match="no benchmark is called speed; choose from throughput, "):
        choose(["speed"])


@pytest.mark.parametrize(
    ("flags", "lasting"),
    [
        ((), (1200, 60, 50)),
        (("--quick",), (15, 4, 1)),
        (("--quick", "--minutes", "2", "--seconds", "9", "--repeats", "3"), (120, 9, 3)),
    ],
)
def test_quick_shortens_durations_that_are_not_given(
    flags: tuple[str, ...], lasting: tuple[float, float, int], network_bundle: Bundle, tmp_path: Path
) -> None:
    config = make_config(parse("--model", network_bundle.folder, *flags), tmp_path)
    assert (config.soak_s, config.overload_s, config.repeats) == lasting


def test_photos_of_every_format_are_measured(network_bundle: Bundle, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "c.gif", "notes.txt"):
        (tmp_path / name).touch()
    config = make_config(parse("--model", network_bundle.folder, "--photos", tmp_path), tmp_path)
    assert [photo.name for photo in config.photos] == ["a.jpg", "b.PNG", "c.gif"]


@pytest.mark.parametrize(("value", "status"), [(0.93, HELD), (0.91, MISSED)])
def test_a_missed_limit_is_printed_and_makes_exit_status_1(
    value: float, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding("fp32, 32 clients", Quantity(value), None, Quantity(value), Limit("at least", 0.92))
    free = Finding("for information", Quantity(0), None, Quantity(0))
    assert exit_status({"throughput": Report("", "", "", (finding, free))}) == status
    assert ("missed: fp32, 32 clients: 0.91" in capsys.readouterr().err) == (status == MISSED)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("speed",), "no benchmark is called speed"), (("--model", "nowhere"), "there is no bundle at nowhere")],
)
def test_unusable_input_is_exit_status_2(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(parse(*arguments)) == UNUSABLE
    assert sentence in capsys.readouterr().err


def test_prints_a_table_and_writes_the_same_as_json(
    colour_bundle: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, file = colour_bundle(), tmp_path / "figures.json"
    flags = ("--quick", "--model", bundle.folder, "--photos", SAMPLES, "--json", file)
    assert run(parse("decode", *flags)) == HELD
    said = capsys.readouterr().out
    assert "colours 1: colours, 3 classes, fp32" in said
    assert "| decode and resize |" in said
    document = json.loads(file.read_text())
    assert document["machine"]["cores"] >= 1
    assert list(document["benchmarks"]) == ["decode"]
    (finding,) = document["benchmarks"]["decode"]["findings"]
    assert finding["figure"]["unit"] == "ms"
    assert finding["figure"]["value"] > 0
    assert finding["holds"] is None
