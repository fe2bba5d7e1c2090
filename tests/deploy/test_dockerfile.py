"""The Dockerfile follows hadolint's rules, and agrees with the package and with the manifests."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from zfserve_cli.main import COMMANDS

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STAGES = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
TARGETS = {"server", "server-gpu", "worker", "export", "studies"}
TOOLS = {"export", "studies"}
"""These images run commands that end, and serve nothing."""


def stage(name: str) -> str:
    found: list[str] = re.findall(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    (text,) = found
    return text


def test_hadolint_has_nothing_to_say() -> None:
    command = [Path(sys.executable).parent / "hadolint", ROOT / "Dockerfile"]
    linted = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_images_are_there_and_run_as_nobody_in_particular() -> None:
    assert set(STAGES) >= TARGETS
    assert "USER 10001:10001" in stage("runtime")
    for target in TARGETS:
        assert re.search(rf"^FROM runtime AS {target}$", DOCKERFILE, re.MULTILINE)


def test_the_extras_exist_and_the_server_is_without_torch() -> None:
    extras = set(re.findall(r"\[([a-z,-]+)\]\"", DOCKERFILE)) | set(
        re.findall(r"^ARG SERVER_EXTRAS=(.*)$", DOCKERFILE, re.M)
    )
    named = {extra for some in extras for extra in some.split(",")}
    assert named == {"server", "server-gpu", "tensorrt-rtx", "worker", "export", "studies", "tracing"}
    assert '.whl)[${SERVER_EXTRAS}]"' in stage("server-build")
    assert named <= PROJECT["project"]["optional-dependencies"].keys()
    assert re.search(r"^FROM build AS server-build$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^FROM torch-build AS worker-build$", DOCKERFILE, re.MULTILINE)


def test_versions_are_those_of_the_constraints_and_indexes_stay_out_of_the_images() -> None:
    assert "PIP_CONSTRAINT=/build/constraints.txt" in stage("build")
    for run in re.findall(r"^RUN ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE):
        assert ("/bin/pip " in run) == run.startswith("--mount=type=secret,id=pip,target=/etc/pip.conf ")
    for target in TARGETS:
        assert not re.search(r"^RUN ", stage(target), re.MULTILINE), "an image is the environment on its base, no more"


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_an_image_runs_is_a_command(target: str) -> None:
    (command,) = re.findall(r"^CMD (\[.*\])$", stage(target).replace("\\\n", ""), re.MULTILINE)
    assert json.loads(command)[0] in COMMANDS
    # A program without TLS listens on a public address only with --allow-insecure.
    assert ("0.0.0.0" in command) == ("--allow-insecure" in command) == (target not in TOOLS)
    for check in re.findall(r"^ +CMD (\[.*\])$", stage(target), re.MULTILINE):
        assert json.loads(check)[:2] == ["zfserve", "health"]
    assert ("HEALTHCHECK" in stage(target)) == (target not in TOOLS)


def test_the_build_context_holds_all_of_the_wheel_and_nothing_else() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {package.split("/")[0] for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    read = set(re.findall(r"(?<=\s)tools/\S+", DOCKERFILE))
    assert allowed == packages | read | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "NOTICE"}
    assert all((ROOT / name).is_file() for name in read)


def test_the_manifests_use_images_that_are_built_here() -> None:
    tags = set()
    for manifest in (ROOT / "deploy").rglob("*.yaml"):
        tags |= set(re.findall(r"image: zfserve:(\S+)", manifest.read_text()))
    assert tags == TARGETS
