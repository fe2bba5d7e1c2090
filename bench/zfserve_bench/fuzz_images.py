"""`python -m zfserve_bench.fuzz_images`: damaged image files against the decoders, in a process that may crash.

Every file must end in pixels or in one of the errors that tell a caller so, within a time and an amount of memory, and
without a word on standard error, which a client must not be able to fill. Files are told by seed and index, so what is
found can be made again: `--first INDEX --inputs 1`. What was run is recorded in docs/security.md.
"""

import argparse
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from zfserve_engines.image_codec import silence_decoders
from zfserve_engines.images import ImageLimits, decode_image
from zfserve_runtime.bundle import InputSpec
from zfserve_runtime.errors import ImageTooLarge, ImageUndecodable, InvalidInput

from zfserve_bench.image_corpus import make_corpus
from zfserve_bench.image_mutations import mutate
from zfserve_bench.machine import describe_machine

SIDE = 32
"""Of the input: the resize to more of it is no decoder's."""

SPEC = InputSpec(height=SIDE, width=SIDE, resize="squash", shorter_side=SIDE, mean=(0, 0, 0), std=(1, 1, 1))
LIMITS = ImageLimits(max_bytes=1024 * 1024, max_pixels=2_000_000)
"""A twenty-fifth of the pixels that the service allows by default, so that time and memory show what runs away."""

MOST_CPU_S = 3.0
MOST_MEMORY_BYTES = 96 * 1024 * 1024
"""For one file, beyond what the process had: 4 bytes for each of LIMITS.max_pixels in each of Pillow's own pictures, of
which a conversion has up to four, and what the codecs keep."""

MOST_SILENCE_S = 120.0
"""By the wall clock, on a machine that is busy otherwise; then the decoder hangs."""

OUTCOMES = ("decoded", ImageUndecodable.reason, ImageTooLarge.reason)


@dataclass(frozen=True)
class Fault:
    """A file that did what none may."""

    index: int
    what: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m zfserve_bench.fuzz_images", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="names the sequence of files (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="index of the first file (default: %(default)s)")
    parser.add_argument(
        "--photos", type=Path, default=Path("samples"), help="folder of JPEG files (default: %(default)s)"
    )
    parser.add_argument("--save", type=Path, help="folder for the files that are at fault")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # the process that may crash
    arguments = parser.parse_args()
    photos = sorted(arguments.photos.glob("*.jpg"))
    if not photos:
        sys.stderr.write(f"error: there are no JPEG files in {arguments.photos}\n")
        return 2
    corpus = make_corpus(photos)
    indices = range(arguments.first, arguments.first + arguments.inputs)
    if arguments.inside:
        decode_all(corpus, arguments.seed, indices)
        return 0
    inside = [sys.executable, "-m", "zfserve_bench.fuzz_images", "--inside"]
    inside += ["--photos", str(arguments.photos), "--seed", str(arguments.seed)]
    began, machine = time.monotonic(), describe_machine()
    outcomes, faults = fuzz(inside, indices)
    _print(
        f"{sum(outcomes.values()):,} files made from {len(corpus)}, seed {arguments.seed}, from {indices.start}, in "
        f"{time.monotonic() - began:.0f} s; {machine.date}, {machine.cpu}, "
        f"Python {machine.versions['Python']}, Pillow {machine.versions['pillow']}"
    )
    _print(", ".join(f"{outcome}: {count:,}" for outcome, count in sorted(outcomes.items())))
    for fault in faults:
        _print(f"FAULT {fault.index}: {fault.what}")
        if arguments.save is not None:
            arguments.save.mkdir(parents=True, exist_ok=True)
            (arguments.save / f"{arguments.seed}-{fault.index}").write_bytes(
                mutate(corpus, arguments.seed, fault.index)
            )
    return 1 if faults else 0


def fuzz(inside: Sequence[str], indices: range) -> tuple[Counter[str], list[Fault]]:
    """Decode all of `indices` in processes of their own: one, and another from the next file on after each death.

    Args:
        inside: command of such a process, which takes `--first` and `--inputs` and runs `decode_all`.
    """
    outcomes: Counter[str] = Counter()
    faults: list[Fault] = []
    at = indices.start
    while at < indices.stop:
        command = [*inside, "--first", str(at), "--inputs", str(indices.stop - at)]
        with (
            tempfile.TemporaryFile() as words,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words) as process,
        ):
            for line in _lines(process):
                index, outcome = json.loads(line)
                at = index + 1
                outcomes[outcome if outcome in OUTCOMES else "fault"] += 1
                if outcome not in OUTCOMES:
                    faults.append(Fault(index, outcome))
            if at < indices.stop:
                process.kill()  # if it hangs
            process.wait()
            words.seek(0)
            said = words.read().decode(errors="replace")
        if at < indices.stop:  # it did not come to the end
            outcomes["fault"] += 1
            faults.append(Fault(at, f"the process ended with {process.returncode}, or hung: {said[-300:]}"))
            at += 1
        elif said:
            faults.append(Fault(at - 1, f"decoders wrote to standard error, by now: {said[:300]}"))
    return outcomes, faults


def decode_all(corpus: Sequence[bytes], seed: int, indices: range) -> None:
    """Decode file after file and write a line of JSON for each: its index, and how it ended."""
    silence_decoders()  # as the service does
    judge(corpus[0])  # imports what is imported late
    # An allocation that would end far beyond the bound fails, whether or not its pages are ever touched.
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (address_space + 2 * MOST_MEMORY_BYTES,) * 2)
    for index in indices:
        outcome = judge(mutate(corpus, seed, index))
        sys.stdout.write(json.dumps([index, outcome]) + "\n")
        sys.stdout.flush()


def judge(data: bytes) -> str:
    """How decoding `data` ended: one of OUTCOMES, or a sentence on what was wrong with it."""
    before_bytes, began_s = _forget_peak(), time.process_time()
    try:
        image = decode_image(data, SPEC, LIMITS)
        pixels = image.pixels
        well_formed = pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
        sound = well_formed and image.source_width * image.source_height <= LIMITS.max_pixels
        outcome = "decoded" if sound else f"pixels {pixels.dtype} {pixels.shape} of {image.source_width} columns"
    except InvalidInput as error:
        outcome = error.reason
        if isinstance(error.__cause__, MemoryError):
            outcome = "an allocation beyond the bound was tried"
        elif error.field != "image.encoded" or error.reason not in OUTCOMES:
            outcome = f"{type(error).__name__} names {error.field}"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    spent_s, grown_bytes = time.process_time() - began_s, _peak() - before_bytes
    if spent_s > MOST_CPU_S:
        return f"{spent_s:.1f} s"
    if grown_bytes > MOST_MEMORY_BYTES:
        return f"{grown_bytes / 2**20:.0f} MB"
    return outcome


def _forget_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The most memory this process had since its peak was forgotten, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _lines(process: "subprocess.Popen[bytes]") -> Iterator[bytes]:
    """Its lines until it ends, or is silent for too long."""
    assert process.stdout is not None
    output, rest = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while selector.select(MOST_SILENCE_S):
            if not (read := os.read(output, 65536)):
                return
            *lines, rest = (rest + read).split(b"\n")
            yield from lines


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
