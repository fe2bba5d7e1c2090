"""Builds images and runs containers with buildah, which needs neither Docker nor a daemon."""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASE = "localhost/python:3.11-bookworm"


class Failure(Exception):
    """An image is not as it must be, or a command failed. The message says what is wrong."""


@dataclass(frozen=True)
class Buildah:
    """Runs buildah with all its state in one folder.

    Attributes:
        folder: an existing folder for images, containers and logs.
        driver: buildah's storage driver.
    """

    folder: Path
    driver: str

    def command(self, *arguments: str) -> list[str]:
        """Returns the command line of buildah with these arguments."""
        store = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        return ["nice", "buildah", *store, "--storage-driver", self.driver, *arguments]

    def __call__(self, *arguments: str) -> str:
        """Runs buildah and returns its output. Raises Failure if it fails."""
        done = subprocess.run(self.command(*arguments), stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"buildah {' '.join(arguments)} ends with {done.returncode}")
        return done.stdout.strip()

    @contextmanager
    def container(self, image: str) -> Iterator[tuple[str, Path]]:
        """Makes a container of `image`, and removes it when the block ends. Yields its name and its root folder."""
        name = self("from", image)
        try:
            yield name, Path(self("mount", name))
        finally:
            self("rm", name)

    def configuration(self, image: str) -> dict[str, Any]:
        """Returns the configuration of the image: `Entrypoint`, `Cmd`, `Healthcheck`, `User`."""
        found: dict[str, Any] = json.loads(self("inspect", "--type", "image", image))["Docker"]["config"]
        return found

    def run(self, container: str, *command: str, volumes: tuple[str, ...] = ()) -> str:
        """Runs `command` in the container as the image's user, and returns its output."""
        return self(*run_arguments(container, command, volumes))


def run_arguments(container: str, command: tuple[str, ...], volumes: tuple[str, ...]) -> list[str]:
    """Returns buildah's arguments that run `command` in the container."""
    mounts = [argument for volume in volumes for argument in ("--volume", volume)]
    return ["run", "--isolation", "chroot", *mounts, container, "--", *command]


def make_base(buildah: Buildah) -> str:
    """Makes an image of a minimal Debian with Python, unless it exists, and returns its name."""
    if BASE in buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        return BASE
    root = buildah.folder / "base"
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(["nice", "debootstrap", "--variant=minbase", packages, "bookworm", str(root)], check=True)
    for needless in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / needless, ignore_errors=True)
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, str(root), "/")
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    buildah("config", "--env", path, container)
    buildah("commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(root)
    return BASE


def build(buildah: Buildah, target: str, base: str, arguments: argparse.Namespace) -> str:
    """Builds a target of the Dockerfile on `base`, and returns the image's name. The output goes to a log file."""
    image = f"localhost/zfserve:{target}"
    # The format is Docker's, because OCI's format has no health check.
    options = ["--isolation", "chroot", "--format", "docker", "--layers", "--target", target, "--tag", image]
    options += ["--build-arg", f"BASE_IMAGE={base}"]
    if arguments.torch_index is not None:
        options += ["--build-arg", f"TORCH_INDEX={arguments.torch_index}"]
    if arguments.pip_conf:
        options += ["--secret", f"id=pip,src={arguments.pip_conf}"]
    for folder in arguments.volume:
        options += ["--volume", f"{folder}:{folder}:ro"]
    log = buildah.folder / f"build-{target}.log"
    with log.open("w") as output:
        command = buildah.command("build", *options, str(arguments.context))
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise Failure(f"the build of {target} ends with {done.returncode}; see {log}")
    return image


def say(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def require(holds: bool, what: str) -> None:
    """Raises Failure unless `holds`."""
    if not holds:
        raise Failure(f"not true: {what}")
