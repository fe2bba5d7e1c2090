"""The command line as a user meets it: output, exit status, and what it says when something is wrong."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from fakes.vision_service import Failure, FakeVisionService, listening, png
from rich.console import Console
from zfserve_client.cli import COMMANDS, FAILED, NOT_INSTALLED, OK, UNREACHABLE, UNUSABLE, main
from zfserve_client.project_command import projection_table
from zfserve_client.projection_files import SavedProjection
from zfserve_client.results import Box, ModelIdentity, Position, Projection

CERTIFICATES = Path(__file__).parent.parent / "runtime" / "tls"
Run = Callable[..., int]


@pytest.fixture
def run(address: str) -> Run:
    """`zfserve` against the fake service."""
    return lambda *arguments: main([*map(str, arguments), "--address", address])


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"photo{length}.jpg" for length in (1, 2, 3)]
    for length, file in enumerate(files, 1):
        file.write_bytes(bytes(length))
    return files


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == OK
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert f"  {name:<10}{command.summary}" in lines


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == OK
    assert capsys.readouterr().out.startswith("zfserve 0.")


def test_a_misspelt_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clasify"]) == UNUSABLE
    assert capsys.readouterr().err == "zfserve: there is no command 'clasify'; did you mean `zfserve classify`?\n"


@pytest.mark.parametrize("command", [name for name in COMMANDS if not COMMANDS[name].extra])
def test_the_clients_commands_import_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom zfserve_client.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'onnxruntime', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_help_and_version_do_not_even_import_grpc() -> None:
    code = (
        "import sys\nfrom zfserve_client.cli import main\nmain(['--help']), main(['--version'])\n"
        "print(sorted({'grpc', 'rich', 'PIL'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("command", [name for name in COMMANDS if COMMANDS[name].extra])
def test_a_command_without_its_extra_says_what_to_install(command: str) -> None:
    code = (
        "import sys\nfrom zfserve_client.cli import main\n"
        "for name in ('torch', 'onnxruntime', 'pydantic', 'numpy', 'safetensors', 'matplotlib'):\n"
        "    sys.modules[name] = None  # as if it were not installed\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=False)
    assert done.returncode == NOT_INSTALLED, done.stderr
    extra = COMMANDS[command].extra
    assert re.fullmatch(
        rf"zfserve: `zfserve {command}` cannot run: \w+ is not installed; .* -e '\.\[{extra}\]'\n", done.stderr
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_module(command: str) -> None:
    assert importlib.util.find_spec(COMMANDS[command].module) is not None


def test_classify_one_photo(run: Run, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("classify", photos[0]) == OK
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines() if "%" in line] == [
        ["church", "█" * 22 + "▌", "75.0%"],
        ["tench", "█" * 5 + "▋", "18.8%"],
        ["golf", "ball", "█▉", "6.2%"],
    ]
    assert "decode 1.5 ms" in shown.out
    assert shown.err == ""


def test_classify_as_json(run: Run, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("classify", photos[0], "--json", "--top", 1, "--features") == OK
    assert json.loads(capsys.readouterr().out) == {
        "file": str(photos[0]),
        "classes": [{"label": "church", "class_id": "n1", "index": 1, "probability": 0.75}],
        "model": {"name": "zfnet", "version": "3", "fingerprint": "ab12"},
        "image_reference": "ref-1",
        "features": [0.5, 0.25],
        "timings": {"decode_ms": 1.5, "queue_ms": 0.25, "inference_ms": 4.0, "batch_size": 2},
    }


def test_classify_a_folder_as_json_lines_with_one_bad_photo(
    run: Run, service: FakeVisionService, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    service.failures = [Failure(grpc.StatusCode.INVALID_ARGUMENT, "Send a JPEG.", "IMAGE_UNDECODABLE")] * 3
    assert run("classify", photos[0].parent, "--json") == UNUSABLE
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["file"] for document in documents] == [str(photo) for photo in photos]
    assert {document["error"]["reason"] for document in documents} == {"IMAGE_UNDECODABLE"}


def test_classify_a_folder_shows_a_row_for_each_photo(
    run: Run,
    service: FakeVisionService,
    photos: list[Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    service.failures = [Failure(grpc.StatusCode.INVALID_ARGUMENT, "Send a JPEG.", "IMAGE_UNDECODABLE")]
    assert run("classify", photos[0].parent) == FAILED
    shown = capsys.readouterr()
    assert sum(photo.name in shown.out for photo in photos) == 2
    assert "Send a JPEG." in shown.err


def test_tables_fit_a_terminal_of_80_columns(
    run: Run, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    assert run("classify", *(photo.name for photo in photos)) == OK
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(photos)
    box = Box(1023, 1277, 1411, 1545)
    projection = Projection(1023, Position(10, 12), 10.25, box, box, b"", None, b"", ModelIdentity("", "", ""), 0, 1)
    saved = SavedProjection(projection, Path("conv5-01-map1023.png"), None)
    Console().print(projection_table([saved], "title"))
    row = capsys.readouterr().out.splitlines()[-1]
    for told in ("1023 ", "10, 12", "10.25", "1023–1411 × 1277–1545", "conv5-01-map1023.png"):
        assert told in row


def test_project_saves_pictures_and_a_sheet(
    run: Run, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "out"
    assert run("project", photos[0], "--layer", "conv2", "--top", 2, "--save", folder) == OK
    assert sorted(file.name for file in folder.iterdir()) == [
        "conv2-01-map0000-patch.png",
        "conv2-01-map0000.png",
        "conv2-02-map0001-patch.png",
        "conv2-02-map0001.png",
        "conv2-sheet.png",
    ]
    assert (folder / "conv2-01-map0000.png").read_bytes() == png((128, 140, 150))
    assert "  3, 4  " in capsys.readouterr().out


def test_project_for_a_class(
    run: Run,
    service: FakeVisionService,
    photos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("project", photos[0], "--for-class", "bee", "--top", 2, "--save", tmp_path / "out") == OK
    title, head, first, second = capsys.readouterr().out.splitlines()
    assert title.split() == ["conv5", "of", photos[0].name + ",", "for", "bee", "(50.0%)"]
    assert head.split()[:5] == ["map", "row,", "col", "activation", "adds"]
    assert "+0.250" in first
    assert "-0.250" in second
    assert run("project", photos[0], "--for-class", "--top", 1) == OK
    assert [request.for_class.class_name for request in service.project_requests] == ["bee", ""]
    assert run("project", photos[0], "--for-class", "bee", "--maps", "1") == UNUSABLE
    assert "not both" in capsys.readouterr().err


def test_project_as_json(
    run: Run, service: FakeVisionService, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("project", photos[0], "--maps", "5,1", "--unit", "2,7", "--json") == OK
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(document["map"], document["rank"], document["total"]) for document in documents] == [(5, 0, 2), (1, 1, 2)]
    request = service.project_requests[0]
    assert (request.layer, request.unit.position.row, request.unit.position.column) == ("conv5", 2, 7)


@pytest.mark.parametrize("arguments", [["--unit", "middle"], ["--maps", "a"], ["--maps", "1", "--top", "2"]])
def test_project_refuses_what_it_cannot_read(run: Run, photos: list[Path], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("project", photos[0], *arguments)
    assert caught.value.code == UNUSABLE


def test_info(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert run("info") == OK
    shown = capsys.readouterr().out
    for figure in ("zfnet 3 (zfnet)", "224 × 224 RGB", "tench, church, golf ball", "110 × 110", "7 px", "87.50%"):
        assert figure in shown
    for figure in ("ready, the default", "birds", "model.onnx is missing"):
        assert figure in shown
    assert run("info", "--json") == OK
    document = json.loads(capsys.readouterr().out)
    assert document["layers"][0]["channels"] == 96
    assert [entry["state"] for entry in document["models"]] == ["failed", "ready", "ready"]


def test_a_model_is_chosen_by_name_and_version(run: Run, service: FakeVisionService, photos: list[Path]) -> None:
    assert run("classify", photos[0], "--model", "birds:1") == OK
    assert run("project", photos[0], "--model", "birds", "--top", "1") == OK
    assert run("info", "--model", "zfnet:3") == OK
    requests = (service.classify_requests[0], service.project_requests[0])
    asked = [*(request.model for request in requests), *service.described]
    assert [(selector.name, selector.version) for selector in asked] == [("birds", "1"), ("birds", ""), ("zfnet", "3")]


@pytest.mark.parametrize("model", ["", ":3", "zfnet:"])
def test_a_model_without_name_or_version_is_refused(run: Run, photos: list[Path], model: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run("classify", photos[0], "--model", model)
    assert caught.value.code == UNUSABLE


def test_no_server_says_how_to_start_one(photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", *map(str, photos), "--address", "127.0.0.1:1"]) == UNREACHABLE
    error = capsys.readouterr().err
    assert error.startswith("error: 3 photos: no zfserve answers at 127.0.0.1:1; start one with `zfserve serve`")
    assert error.count("\n") == 1


def test_a_deadline_says_how_to_give_more_time(
    run: Run, service: FakeVisionService, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    service.open.clear()
    assert run("classify", photos[0], "--timeout", "0.05") == FAILED
    assert "give it longer with --timeout" in capsys.readouterr().err


TRUST = ("--tls-ca", str(CERTIFICATES / "ca.pem"))


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (("--tls",), "no authority that is trusted here has signed its certificate; name that authority's file with"),
        (
            ("--tls-ca", str(CERTIFICATES / "client.pem")),
            "no authority that is trusted here has signed its certificate",
        ),
        ((*TRUST, "--tls-server-name", "elsewhere"), "its certificate has another name; give that with --tls-server-"),
    ],
)
def test_a_server_with_tls_met_with_other_options_says_which_to_change(
    flags: tuple[str, ...], fault: str, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    key, chain = ((CERTIFICATES / name).read_bytes() for name in ("server.key", "server.pem"))
    with listening(service, credentials=grpc.ssl_server_credentials([(key, chain)])) as port:
        address = f"127.0.0.1:{port}"
        assert main(["info", "--address", address, *TRUST]) == OK
        assert main(["info", "--address", address, *flags]) == UNREACHABLE
    assert f"no zfserve answers at {address} over TLS: {fault}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("running", "fault"), [(True, "it does not speak TLS; leave the --tls options out"), (False, "compare the --tls")]
)
def test_tls_where_there_is_none(
    running: bool, fault: str, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening(service) as port:
        address = f"127.0.0.1:{port if running else 1}"
        assert main(["info", "--address", address, "--tls"]) == UNREACHABLE
    assert f"no zfserve answers at {address} over TLS: {fault}" in capsys.readouterr().err


def test_the_address_may_stand_in_the_environment(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZFSERVE_ADDRESS", address)
    assert main(["info"]) == OK


@pytest.mark.parametrize(
    ("failure", "status", "says"),
    [
        (Failure(grpc.StatusCode.NOT_FOUND, "There is no conv9.", "NOT_FOUND"), UNUSABLE, "There is no conv9."),
        (
            Failure(grpc.StatusCode.INTERNAL, "It broke.", "ENGINE_FAILED"),
            FAILED,
            "It broke.; request r-1",
        ),
        (Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Too late.", "DEADLINE_EXCEEDED"), FAILED, "Too late."),
    ],
    ids=["not found", "internal", "deadline"],
)
def test_a_failed_projection(
    run: Run,
    service: FakeVisionService,
    photos: list[Path],
    capsys: pytest.CaptureFixture[str],
    failure: Failure,
    status: int,
    says: str,
) -> None:
    service.failures = [failure]
    assert run("project", photos[0]) == status
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["classify", "none.jpg"], ["info", "--tls-cert", "c.pem"], ["info", "--tls-ca", "none.pem"]]
)
def test_unusable_arguments(run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(*arguments) == UNUSABLE
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["info", "--json"]])
def test_output_that_is_lost_is_told(address: str, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "zfserve_client.cli", *arguments]
    environment = {**os.environ, "ZFSERVE_ADDRESS": address}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
    assert done.returncode == FAILED
    assert done.stderr == "zfserve: the output cannot be written: No space left on device\n"


def test_names_that_are_no_text_and_long_ones_are_told_whole(address: str, tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.jpg"), f"{'long' * 30}.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(b"123")
    command = [sys.executable, "-m", "zfserve_client.cli", "classify", str(tmp_path), "--address", address]
    done = subprocess.run(
        command, capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    )
    assert done.returncode == OK, done.stderr
    shown = done.stdout.decode()
    assert "caf\\udce9.jpg" in shown
    assert "long" * 30 in "".join(re.findall(r"^ (\S+)", shown, re.MULTILINE))


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_times_are_finite_and_above_0(run: Run, capsys: pytest.CaptureFixture[str], value: str) -> None:
    with pytest.raises(SystemExit):
        run("info", f"--timeout={value}")
    assert "is not a number of seconds above 0" in capsys.readouterr().err


def test_pictures_that_cannot_be_saved_are_told(
    run: Run, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for blocked in ("conv5-sheet.png", "conv5-01-map0000.png"):
        (tmp_path / blocked / blocked).mkdir(parents=True)
        assert run("project", photos[0], "--layer", "conv5", "--save", tmp_path / blocked) == FAILED
        assert "a picture cannot be written" in capsys.readouterr().err
