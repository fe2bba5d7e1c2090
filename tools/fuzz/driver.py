"""Runs the decoders in processes of their own and survives their crashes. `python -m tools.fuzz` calls it."""

import json
import os
import selectors
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tools.fuzz.oracle import OUTCOMES

SILENCE_TIMEOUT_S = 120.0
"""A decoder is considered to hang if its process prints nothing for this many seconds. It is long enough for a busy
machine."""


@dataclass(frozen=True)
class Fault:
    """Describes a file that broke a rule.

    Attributes:
        index: the file's index in the sequence of its seed.
        description: what went wrong.
    """

    index: int
    description: str


def decode_in_processes(command: Sequence[str], indices: range) -> tuple[Counter[str], list[Fault]]:
    """Decodes all files of `indices`. When the process dies, a new one continues with the next file.

    Args:
        command: starts a process that takes `--first` and `--inputs` and runs `oracle.decode_all`.
        indices: the indices of the files.

    Returns:
        The number of files by outcome, and the faults.
    """
    outcomes: Counter[str] = Counter()
    faults: list[Fault] = []
    at = indices.start
    while at < indices.stop:
        arguments = [*command, "--first", str(at), "--inputs", str(indices.stop - at)]
        with (
            tempfile.TemporaryFile() as stderr,
            subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=stderr) as process,
        ):
            for line in _lines(process):
                index, outcome = json.loads(line)
                at = index + 1
                outcomes[outcome if outcome in OUTCOMES else "fault"] += 1
                if outcome not in OUTCOMES:
                    faults.append(Fault(index, outcome))
            if at < indices.stop:
                process.kill()  # it may hang
            process.wait()
            stderr.seek(0)
            written = stderr.read().decode(errors="replace")
        if at < indices.stop:  # it did not reach the last file
            outcomes["fault"] += 1
            faults.append(Fault(at, f"the process ended with {process.returncode}, or hung: {written[-300:]}"))
            at += 1
        elif written:
            faults.append(
                Fault(at - 1, f"the decoders wrote to standard error, at this file or before: {written[:300]}")
            )
    return outcomes, faults


def _lines(process: "subprocess.Popen[bytes]") -> Iterator[bytes]:
    """Yields lines of standard output until the process ends, or prints nothing for `SILENCE_TIMEOUT_S`."""
    assert process.stdout is not None
    output, rest = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while selector.select(SILENCE_TIMEOUT_S):
            if not (read := os.read(output, 65536)):
                return
            *lines, rest = (rest + read).split(b"\n")
            yield from lines
