"""`python -m tools.images`: builds the images with buildah, examines and runs them, and runs the demo against them.

    sudo .venv/bin/python -m tools.images

Needs Linux, root, `apt install buildah debootstrap iproute2 util-linux`, and the repository's .venv as the client
(`make demo` makes it). It is not part of the test suite: it takes ten minutes or more, and 10 GB in --folder, which it
leaves there. It prints a line for each finding, and fails at the first fault.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tools.images.buildah import Buildah, Failure, build, make_base, require, say
from tools.images.run import REPOSITORY, USER, WORLD_WRITABLE, run_together


def megabytes(root: Path) -> int:
    """Returns the size of all files in MB, uncompressed."""
    command = ["du", "-s", "--apparent-size", "--block-size=1MB", str(root)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[0])


def examine(buildah: Buildah, target: str, image: str, base_mb: int) -> None:
    """Prints the size of an image. Checks its user, what the user may write, and what the image must not contain."""
    with buildah.container(image) as (container, root):
        size = megabytes(root)
        say(f"  {target}: {size} MB, {size - base_mb} MB of it above the base")
        (site,) = (root / "opt/zfserve/lib").glob("python3*/site-packages")
        require(not (site / "pip").exists(), f"{target} has no pip")
        require((site / "torch").exists() == (target in ("worker", "export")), "only worker and export have PyTorch")
        require(not (root / "etc/pip.conf").exists(), "pip's configuration stays out")
        require(buildah.run(container, "id", "-u") == str(USER), f"{target} runs as user {USER}")
        find = "find / -xdev -writable ! -type l ! -path '/proc/*' ! -path '/dev/*' 2>/dev/null || true"
        writable = buildah.run(container, "sh", "-c", find).split()
        require(set(writable) <= set(WORLD_WRITABLE), f"{target} lets its user write to {', '.join(writable)} only")
        say(f"    user {USER}, who may write to {', '.join(writable)} only; no pip")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.images",
        description="Builds the images with buildah, runs them, and puts requests to them.",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/tmp/zfserve-images"),
        help="folder for images, logs and the demo (default: %(default)s)",
    )
    parser.add_argument("--context", type=Path, default=REPOSITORY, help="folder to build (default: this repository)")
    parser.add_argument("--base-image", help="image to build on (default: Debian bookworm, made by debootstrap)")
    parser.add_argument(
        "--target", action="append", help="build and examine this target only; may be given several times"
    )
    parser.add_argument("--pip-conf", type=Path, help="pip's configuration during the build")
    parser.add_argument(
        "--volume",
        action="append",
        default=[],
        help="folder that pip needs during the build; may be given several times",
    )
    parser.add_argument("--torch-index", help="package index of PyTorch; see the Dockerfile")
    parser.add_argument(
        "--storage-driver", default="vfs", help="storage driver of buildah: vfs works everywhere, overlay is faster"
    )
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
