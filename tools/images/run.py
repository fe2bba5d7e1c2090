"""Runs containers of the images in a network of their own, and puts requests to them."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.images.buildah import Buildah, require, run_arguments, say

REPOSITORY = Path(__file__).resolve().parent.parent.parent
USER = 10001
WORLD_WRITABLE = "/tmp", "/var/tmp", "/run/lock"
"""The folders that Debian lets everyone write to. The programs write to the first only."""

NAMESPACE = "zfserve-images"
START_S = 600


def in_namespace(*command: str) -> list[str]:
    """Returns the command line that runs `command` in the network namespace."""
    return ["nsenter", f"--net=/run/netns/{NAMESPACE}", *command]


@contextmanager
def network() -> Iterator[None]:
    """Makes an empty network namespace for the block, so that the ports of the images are free."""
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        subprocess.run(["ip", "-n", NAMESPACE, "link", "set", "lo", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", NAMESPACE], check=True)


@contextmanager
def started(buildah: Buildah, image: str, extra: tuple[str, ...], models: Path) -> Iterator[None]:
    """Runs the image's own command with `extra` arguments, and waits until it is healthy.

    When the block ends it sends SIGTERM, after which the program must end with status 0.
    """
    configured = buildah.configuration(image)
    default = configured["Entrypoint"] + configured["Cmd"]
    command = (*(argument for argument in default if not (extra and argument == "--no-worker")), *extra)
    say(f"  {' '.join(command)}")
    name = image.rpartition(":")[2]
    log, temporary = buildah.folder / f"run-{name}.log", make_folder(buildah.folder / f"tmp-{name}")
    volumes = (f"{models}:/models:ro", f"{temporary}:/tmp")
    with buildah.container(image) as (container, root):
        with log.open("w") as output:
            run = in_namespace(*buildah.command(*run_arguments(container, command, volumes)))
            process = subprocess.Popen(run, stdout=output, stderr=subprocess.STDOUT)
            try:
                wait_until_healthy(buildah, container, image)
                yield
            finally:
                # buildah does not forward signals, so the signal goes to the innermost process, which is the program.
                program = innermost(process.pid)
                peak_mb = peak_megabytes(program)
                os.kill(program, signal.SIGTERM)
                status = process.wait(60)
        require(status == 0, f"{name} ends with 0 after SIGTERM, not with {status}; see {log}")
        for folder in WORLD_WRITABLE[1:]:
            require(not list((root / folder[1:]).glob("*")), f"{name} writes nothing to {folder}")
        say(f"    {name} ended with 0 after SIGTERM; it wrote to /tmp only, and took {peak_mb} MB of memory at most")


def innermost(pid: int) -> int:
    """Returns the id of the last descendant of a process."""
    children = [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    return innermost(int(children[0])) if children else pid


def peak_megabytes(pid: int) -> int:
    """Returns the peak resident memory of a process; 0 if it has ended."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return round(int(status.get("VmHWM", "0 kB").split()[0]) / 1000)


def wait_until_healthy(buildah: Buildah, container: str, image: str) -> None:
    """Repeats the image's HEALTHCHECK in the container until it succeeds. Raises Failure after `START_S`."""
    kind, *check = buildah.configuration(image)["Healthcheck"]["Test"]
    require(kind == "CMD", f"{image} checks its health with a command")
    probe = in_namespace(*buildah.command(*run_arguments(container, tuple(check), ())))
    deadline = time.monotonic() + START_S
    while (done := subprocess.run(probe, capture_output=True, text=True, check=False)).returncode != 0:
        require(time.monotonic() < deadline, f"{image} is healthy within {START_S} s: {done.stdout}{done.stderr}")
        time.sleep(2)
    say(f"    healthy by `{' '.join(check)}` in the container")


def make_folder(folder: Path) -> Path:
    """Makes an empty folder that the images' user may write to, and removes an existing one first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder


def export_bundle(buildah: Buildah, models: Path) -> None:
    """Exports a bundle from the shipped weights with the image `export`."""
    volumes = (f"{models}:/models", f"{REPOSITORY / 'weights'}:/weights:ro", f"{REPOSITORY / 'samples'}:/samples:ro")
    weights = "/weights/zfnet-imagenette.safetensors"
    with buildah.container("localhost/zfserve:export") as (container, _):
        command = ("zfserve", "export", weights, "--output", "/models", "--name", "zfnet", "--photos", "/samples")
        say(buildah.run(container, *command, volumes=volumes))


def put_requests(folder: Path) -> None:
    """Runs the demo and each command of the client once, from outside the containers."""
    python, zfserve = REPOSITORY / ".venv/bin/python", REPOSITORY / ".venv/bin/zfserve"
    demo = [str(python), "-m", "zfserve_cli.demo", "--address", "localhost:8500", "--output", str(folder / "demo")]
    photo = str(REPOSITORY / "samples/church.jpg")
    commands = (
        [str(zfserve), "info"],
        [str(zfserve), "health", "zfserve.v1.VisionService/Project"],
        [str(zfserve), "classify", photo],
        [str(zfserve), "project", photo, "--layer", "conv5", "--top", "2"],
        demo,
    )
    for command in commands:
        subprocess.run(in_namespace("nice", *command), check=True, cwd=REPOSITORY)


def run_together(buildah: Buildah) -> None:
    """Exports a bundle, starts a worker and a server on it, and puts requests to them."""
    models = make_folder(buildah.folder / "models")
    export_bundle(buildah, models)
    with (
        network(),
        started(buildah, "localhost/zfserve:worker", (), models),
        started(buildah, "localhost/zfserve:server", ("--worker-address", "localhost:8501"), models),
    ):
        put_requests(buildah.folder)
