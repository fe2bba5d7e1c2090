"""pyproject.toml requires versions that the stubs accept, and constraints.txt pins versions that it allows."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent

GRPC_PACKAGES = ("grpcio", "grpcio-health-checking", "grpcio-reflection", "grpcio-status", "grpcio-tools")
"""These packages are released together. Those beside grpcio have stubs of their own."""

NOT_PINNED = {"tensorrt"}
"""Only NVIDIA's index has `tensorrt`."""


def requirements() -> Iterator[Requirement]:
    """Yields the requirements of the base install and of every extra, without the extras that name other extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in (
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ):
        requirement = Requirement(text)
        if requirement.name != "zfserve":
            yield requirement


def floor(name: str) -> Version:
    """Returns the lowest version of `name` that any requirement allows."""
    floors = [
        Version(one.version)
        for requirement in requirements()
        if requirement.name == name
        for one in requirement.specifier
        if one.operator == ">="
    ]
    assert floors, f"nothing asks for {name}"
    return min(floors)


def stubs(ending: str) -> dict[str, str]:
    files = sorted((ROOT / "protos").rglob(f"*{ending}"))
    assert files
    return {str(file.relative_to(ROOT)): file.read_text() for file in files}


@pytest.mark.parametrize("package", GRPC_PACKAGES)
def test_grpc_is_as_new_as_the_stubs(package: str) -> None:
    for name, text in stubs("_pb2_grpc.py").items():
        generated = re.search(r"^GRPC_GENERATED_VERSION = '(.+)'$", text, re.MULTILINE)
        assert generated, name
        assert floor(package) >= Version(generated[1]), f"{name} refuses what pyproject.toml admits of {package}"


def test_protobuf_is_as_new_as_the_stubs() -> None:
    for name, text in stubs("_pb2.py").items():
        wanted = re.search(r"ValidateProtobufRuntimeVersion\(\s*[\w.]+,\s*(\d+),\s*(\d+),\s*(\d+),", text)
        assert wanted, name
        assert floor("protobuf") >= Version(".".join(wanted.groups())), f"{name} refuses what pyproject.toml admits"


def test_every_requirement_is_pinned_to_a_version_that_it_admits() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {_normal(name): Version(version) for name, version in pins.items()}
    names = {_normal(requirement.name) for requirement in requirements()}
    assert names - pinned.keys() == NOT_PINNED
    unmet = [
        str(requirement)
        for requirement in requirements()
        if _normal(requirement.name) in pinned
        and not requirement.specifier.contains(pinned[_normal(requirement.name)], prereleases=True)
    ]
    assert not unmet


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
