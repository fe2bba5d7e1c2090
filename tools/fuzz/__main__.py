"""`python -m tools.fuzz`: feeds damaged image files to the image decoders, in a process that may crash.

Each file must end in pixels, or in one of the errors that tell a caller what is wrong with an image. CPU time and
memory are bounded. The decoders must write nothing to standard error, because a client could fill the log that way.
A seed and an index name a file, so a fault can be reproduced: `--seed SEED --first INDEX --inputs 1`.
docs/security.md records the runs.
"""

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from PIL import __version__ as pillow_version
from PIL import features
from zfserve_photos.files import list_photo_files

from tools.fuzz.corpus import make_corpus
from tools.fuzz.driver import Fault, decode_in_processes
from tools.fuzz.mutations import mutate
from tools.fuzz.oracle import decode_all

HELD, FAULTS, UNUSABLE = 0, 1, 2
"""The exit statuses."""


def main() -> int:
    arguments = parse_arguments()
    photos = list_photo_files(arguments.photos, recursive=False)
    if not photos:
        sys.stderr.write(f"error: there are no photos in {arguments.photos}\n")
        return UNUSABLE
    corpus = make_corpus(photos)
    indices = range(arguments.first, arguments.first + arguments.inputs)
    if arguments.decode:
        decode_all(corpus, arguments.seed, indices)
        return HELD
    command = [sys.executable, "-m", "tools.fuzz", "--decode"]
    command += ["--photos", str(arguments.photos), "--seed", str(arguments.seed)]
    began = time.monotonic()
    outcomes, faults = decode_in_processes(command, indices)
    _print(
        f"{sum(outcomes.values()):,} files made from {len(corpus)}, seed {arguments.seed}, from {indices.start}, in "
        f"{time.monotonic() - began:.0f} s; {date.today()}, {platform.platform()}, "
        f"Python {platform.python_version()}, Pillow {pillow_version}, libtiff {features.version('libtiff')}"
    )
    _print(", ".join(f"{outcome}: {count:,}" for outcome, count in sorted(outcomes.items())))
    for fault in faults:
        _print(f"FAULT {fault.index}: {fault.description}")
    if arguments.save is not None:
        save(corpus, arguments.seed, faults, arguments.save)
    return FAULTS if faults else HELD


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuzz", description="Feeds damaged image files to the image decoders."
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="number of files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="names the sequence of files (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="index of the first file (default: %(default)s)")
    parser.add_argument("--photos", type=Path, default=Path("samples"), help="folder of photos (default: %(default)s)")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write each faulty file to this folder")
    parser.add_argument("--decode", action="store_true", help=argparse.SUPPRESS)  # the process that may crash
    return parser.parse_args()


def save(corpus: Sequence[bytes], seed: int, faults: Sequence[Fault], folder: Path) -> None:
    """Writes the file of each fault to `folder`, under the name SEED-INDEX."""
    for fault in faults:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{seed}-{fault.index}").write_bytes(mutate(corpus, seed, fault.index))


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
