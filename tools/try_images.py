"""Build the images with buildah, which needs neither Docker nor a daemon, run them, put the demo's requests to them.

    sudo .venv/bin/python tools/try_images.py

Needs Linux, root, `apt install buildah debootstrap iproute2 util-linux`, and the repository's .venv as the client
(`make demo` makes it). Not part of the test suite: it takes ten minutes or more, and 10 GB in --folder, which stays.
Prints one line for each thing that was found, and fails at the first that is not as it should be.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
BASE = "localhost/python:3.11-bookworm"
USER = 10001
OWN = "/tmp", "/var/tmp", "/run/lock"
"""What Debian lets everyone write to; only the first is written to here."""
NAMESPACE = "zfserve-images"
START_S = 600


class Failure(Exception):
    """Says what is not as it should be."""


@dataclass(frozen=True)
class Buildah:
    """buildah, with all that it keeps in one folder."""

    folder: Path
    driver: str

    def command(self, *arguments: str) -> list[str]:
        store = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        return ["nice", "buildah", *store, "--storage-driver", self.driver, *arguments]

    def __call__(self, *arguments: str) -> str:
        """What it prints.

        Raises:
            Failure: it fails.
        """
        done = subprocess.run(self.command(*arguments), stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"buildah {' '.join(arguments)} ends with {done.returncode}")
        return done.stdout.strip()

    @contextmanager
    def container(self, image: str) -> Iterator[tuple[str, Path]]:
        """A container of `image`, which is removed in the end, and where its files are."""
        name = self("from", image)
        try:
            yield name, Path(self("mount", name))
        finally:
            self("rm", name)

    def configuration(self, image: str) -> dict[str, Any]:
        """What the Dockerfile says of running it: `Entrypoint`, `Cmd`, `Healthcheck`, `User`."""
        found: dict[str, Any] = json.loads(self("inspect", "--type", "image", image))["Docker"]["config"]
        return found

    def run(self, container: str, *command: str, volumes: tuple[str, ...] = ()) -> str:
        """What `command` prints in the container, as the image's user."""
        return self(*run_arguments(container, command, volumes))


def run_arguments(container: str, command: tuple[str, ...], volumes: tuple[str, ...]) -> list[str]:
    mounts = [argument for volume in volumes for argument in ("--volume", volume)]
    return ["run", "--isolation", "chroot", *mounts, container, "--", *command]


def make_base(buildah: Buildah) -> str:
    """A minimal Debian with Python, the name of its image."""
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
    """The image's name. What the build says goes to a file in the folder."""
    image = f"localhost/zfserve:{target}"
    # Docker's format, as OCI's has no health check.
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


def megabytes(root: Path) -> int:
    """Of all files, uncompressed."""
    command = ["du", "-s", "--apparent-size", "--block-size=1MB", str(root)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[0])


def examine(buildah: Buildah, target: str, image: str, base_mb: int) -> None:
    """Sizes, user, what the user may write, and that nothing is in the image that should not be."""
    with buildah.container(image) as (container, root):
        size = megabytes(root)
        say(f"  {target}: {size} MB, {size - base_mb} MB of it above the base")
        (site,) = (root / "opt/zfserve/lib").glob("python3*/site-packages")
        require(not (site / "pip").exists(), f"{target} has no pip")
        require((site / "torch").exists() == (target in ("worker", "export")), "only worker and export have PyTorch")
        require(not (root / "etc/pip.conf").exists(), "pip's configuration stays out")
        require(buildah.run(container, "id", "-u") == str(USER), f"{target} runs as user {USER}")
        look = "find / -xdev -writable ! -type l ! -path '/proc/*' ! -path '/dev/*' 2>/dev/null || true"
        writable = buildah.run(container, "sh", "-c", look).split()
        require(set(writable) <= set(OWN), f"{target} lets its user write to {', '.join(writable)} only")
        say(f"    user {USER}, who may write to {', '.join(writable)} only; no pip")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Failure(f"not so: {what}")


def in_namespace(*command: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{NAMESPACE}", *command]


@contextmanager
def network() -> Iterator[None]:
    """A network with nothing in it but itself, so that the images' own ports are free."""
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        subprocess.run(["ip", "-n", NAMESPACE, "link", "set", "lo", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", NAMESPACE], check=True)


@contextmanager
def started(buildah: Buildah, image: str, extra: tuple[str, ...], models: Path) -> Iterator[None]:
    """The image's own command with `extra` arguments, until it is healthy. In the end SIGTERM, which it must obey."""
    configured = buildah.configuration(image)
    own = configured["Entrypoint"] + configured["Cmd"]
    command = (*(argument for argument in own if not (extra and argument == "--no-worker")), *extra)
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
                # buildah does not pass signals on; the program itself is the last of its line.
                program = innermost(process.pid)
                peak_mb = peak_megabytes(program)
                os.kill(program, signal.SIGTERM)
                status = process.wait(60)
        require(status == 0, f"{name} ends with 0 after SIGTERM, not with {status}; see {log}")
        for folder in OWN[1:]:
            require(not list((root / folder[1:]).glob("*")), f"{name} writes nothing to {folder}")
        say(f"    {name} ended with 0 after SIGTERM; it wrote to /tmp only, and took {peak_mb} MB of memory at most")


def innermost(pid: int) -> int:
    """Child of child, to the last."""
    children = [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    return innermost(int(children[0])) if children else pid


def peak_megabytes(pid: int) -> int:
    """Of memory; 0 for a process that has ended."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return round(int(status.get("VmHWM", "0 kB").split()[0]) / 1000)


def wait_until_healthy(buildah: Buildah, container: str, image: str) -> None:
    """By the image's own HEALTHCHECK, in the container."""
    kind, *check = buildah.configuration(image)["Healthcheck"]["Test"]
    require(kind == "CMD", f"{image} checks its health with a command")
    ask = in_namespace(*buildah.command(*run_arguments(container, tuple(check), ())))
    deadline = time.monotonic() + START_S
    while (done := subprocess.run(ask, capture_output=True, text=True, check=False)).returncode != 0:
        require(time.monotonic() < deadline, f"{image} is healthy within {START_S} s: {done.stdout}{done.stderr}")
        time.sleep(2)
    say(f"    healthy, says `{' '.join(check)}` in it")


def make_folder(folder: Path) -> Path:
    """An empty one that the images' user may write to."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder


def export_bundle(buildah: Buildah, models: Path) -> None:
    """With the image `export`, from the shipped weights."""
    volumes = (f"{models}:/models", f"{REPOSITORY / 'weights'}:/weights:ro", f"{REPOSITORY / 'samples'}:/samples:ro")
    weights = "/weights/zfnet-imagenette.safetensors"
    with buildah.container("localhost/zfserve:export") as (container, _):
        command = ("zfserve", "export", weights, "--output", "/models", "--name", "zfnet", "--photos", "/samples")
        say(buildah.run(container, *command, volumes=volumes))


def put_requests(folder: Path) -> None:
    """The demo's, and each of the client's questions once, from outside the containers."""
    python, zfserve = REPOSITORY / ".venv/bin/python", REPOSITORY / ".venv/bin/zfserve"
    demo = [str(python), "-m", "zfserve_cli.demo", "--address", "localhost:8500", "--output", str(folder / "demo")]
    photo = str(REPOSITORY / "samples/church.jpg")
    asked = (
        [str(zfserve), "info"],
        [str(zfserve), "health", "zfserve.v1.VisionService/Project"],
        [str(zfserve), "classify", photo],
        [str(zfserve), "project", photo, "--layer", "conv5", "--top", "2"],
        demo,
    )
    for command in asked:
        subprocess.run(in_namespace("nice", *command), check=True, cwd=REPOSITORY)


def run_together(buildah: Buildah) -> None:
    """Exports a bundle, starts worker and server on it, and asks them."""
    models = make_folder(buildah.folder / "models")
    export_bundle(buildah, models)
    with (
        network(),
        started(buildah, "localhost/zfserve:worker", (), models),
        started(buildah, "localhost/zfserve:server", ("--worker-address", "localhost:8501"), models),
    ):
        put_requests(buildah.folder)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the images with buildah, run them, and ask them.")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/zfserve-images"), help="for images, logs, the demo")
    parser.add_argument("--context", type=Path, default=REPOSITORY, help="what is built (default: this repository)")
    parser.add_argument("--base-image", help="to build on (default: Debian bookworm, made here by debootstrap)")
    parser.add_argument("--target", action="append", help="only build and measure it; may be given several times")
    parser.add_argument("--pip-conf", type=Path, help="pip's configuration during the build")
    parser.add_argument("--volume", action="append", default=[], help="folder that pip needs during the build")
    parser.add_argument("--torch-index", help="where PyTorch comes from; see the Dockerfile")
    parser.add_argument("--storage-driver", default="vfs", help="buildah's: vfs works everywhere, overlay is faster")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(arguments.folder, arguments.storage_driver)
    try:
        base = arguments.base_image or make_base(buildah)
        with buildah.container(base) as (_, root):
            base_mb = megabytes(root)
        say(f"base {base}: {base_mb} MB")
        for target in arguments.target or ("server", "worker", "export"):
            examine(buildah, target, build(buildah, target, base, arguments), base_mb)
        if not arguments.target:
            run_together(buildah)
    except (Failure, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"FAILED: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
