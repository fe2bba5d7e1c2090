"""This process obtains an engine from a store, for tests with several processes.

Its arguments are the store's folder, a letter, and a size in bytes. The plan that it builds repeats the letter. It
writes a line for each event: `waiting`, `building`, `has <letter>`, `unavailable <reason>`. When it builds, it reads
one line of its input:

- `go` finishes the build.
- `full` first limits the size of a file to half of the plan. The write then fails, as on a full disk.
- `die` sets the same limit. The write that exceeds it kills the process.
"""

import resource
import signal
import sys
from pathlib import Path

from fakes.engine_store import AHEAD, SUMMARY
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.store.store import EngineStore
from zfserve_engines.tensorrt.builder import BuiltEngine


def main(folder: Path, letter: str, size_bytes: int) -> None:
    def build(timing_cache: bytes) -> BuiltEngine:
        tell("building")
        order = sys.stdin.readline().strip()
        if order in ("full", "die"):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes // 2, size_bytes // 2))
        if order == "die":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores the signal, so that the write fails instead
        return BuiltEngine(letter.encode() * size_bytes, SUMMARY)

    try:
        stored = EngineStore(folder).find_or_build(AHEAD, build, lambda phase, done, total: tell(phase.split()[0]))
    except EngineUnavailable as error:
        tell(f"unavailable {error}")
    else:
        tell(f"has {stored.plan[:1].decode()}")


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
