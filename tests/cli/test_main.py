"""Tests the command line itself: help, command names, exit statuses, imports, missing extras, and lost output."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from zfserve_cli.exit_statuses import ENGINE_LOST, FAILED, MEANINGS, NOT_INSTALLED, OK, UNREACHABLE, UNUSABLE
from zfserve_cli.main import COMMANDS, main
from zfserve_runtime.grpc.shutdown import EXIT_ENGINE_LOST

ROOT = Path(__file__).parent.parent.parent


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == OK
    lines = capsys.readouterr().out.splitlines()
    width = max(len(name) for name in COMMANDS) + 2
    for name, command in COMMANDS.items():
        assert f"  {name:<{width}}{command.summary}" in lines


def test_help_and_the_page_of_errors_list_every_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("exit status:") + 1 :] == [
        f"  {status:<10}{meaning}" for status, meaning in MEANINGS.items()
    ]
    page = (ROOT / "docs" / "errors.md").read_text().split("## Exit statuses")[1]
    assert [int(status) for status in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(MEANINGS)


def test_a_lost_engine_and_an_unreachable_server_have_different_statuses() -> None:
    assert ENGINE_LOST == EXIT_ENGINE_LOST
    assert UNREACHABLE != ENGINE_LOST


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == OK
    assert capsys.readouterr().out.startswith("zfserve 0.")


def test_a_misspelt_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clasify"]) == UNUSABLE
    assert capsys.readouterr().err == "zfserve: there is no command 'clasify'; did you mean `zfserve classify`?\n"


@pytest.mark.parametrize("command", [name for name in COMMANDS if not COMMANDS[name].extra])
def test_the_clients_commands_import_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom zfserve_cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'onnxruntime', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_help_and_version_do_not_even_import_grpc() -> None:
    code = (
        "import sys\nfrom zfserve_cli.main import main\nmain(['--help']), main(['--version'])\n"
        "print(sorted({'grpc', 'rich', 'PIL'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("command", [name for name in COMMANDS if COMMANDS[name].extra])
def test_a_command_without_its_extra_says_what_to_install(command: str) -> None:
    code = (
        "import sys\nfrom zfserve_cli.main import main\n"
        "for name in ('torch', 'onnxruntime', 'pydantic', 'numpy', 'safetensors', 'matplotlib'):\n"
        "    sys.modules[name] = None  # makes its import fail\n"
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


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["info", "--json"]])
def test_output_that_cannot_be_written_is_an_error(address: str, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "zfserve_cli.main", *arguments]
    environment = {**os.environ, "ZFSERVE_ADDRESS": address}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
    assert done.returncode == FAILED
    assert done.stderr == "zfserve: the output cannot be written: No space left on device\n"
