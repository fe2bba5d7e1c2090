"""Tests that the fuzzer reports crashes, faults and output on standard error, and that its files are reproducible."""

import sys
from pathlib import Path

import pytest

from tools.fuzz import oracle
from tools.fuzz.corpus import make_corpus
from tools.fuzz.driver import Fault, decode_in_processes
from tools.fuzz.fields import number_fields, png_chunks
from tools.fuzz.mutations import MUTATIONS, mutate
from tools.fuzz.oracle import judge

SAMPLES = Path(__file__).parent.parent.parent / "samples"

# Stands for a process that decodes: file 2 kills it, and file 4 takes too long.
PROCESS = """
import json, os, signal, sys
first, inputs = int(sys.argv[2]), int(sys.argv[4])
for index in range(first, first + inputs):
    if index == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    print(json.dumps([index, "5.0 s" if index == 4 else "decoded"]), flush=True)
"""


def test_a_crash_and_a_fault_are_reported_and_the_other_files_are_decoded() -> None:
    outcomes, faults = decode_in_processes([sys.executable, "-c", PROCESS], range(6))
    assert outcomes == {"decoded": 4, "fault": 2}
    assert [fault.index for fault in faults] == [2, 4]
    assert "ended with -11" in faults[0].description
    assert faults[1] == Fault(4, "5.0 s")


def test_output_on_standard_error_is_a_fault() -> None:
    outcomes, faults = decode_in_processes(
        [sys.executable, "-c", PROCESS + "print('libtiff: oh', file=sys.stderr)"], range(3, 4)
    )
    assert outcomes == {"decoded": 1}
    assert "libtiff: oh" in faults[0].description


@pytest.mark.parametrize(
    ("error", "outcome"), [(OSError("no"), "OSError: no"), (SystemError("bad"), "SystemError: bad")]
)
def test_an_unexpected_exception_is_a_fault(error: Exception, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise error

    monkeypatch.setattr(oracle, "decode_image", decode)
    assert judge(b"") == outcome


def test_seed_and_index_name_a_file_and_every_format_has_fields_to_corrupt() -> None:
    corpus = make_corpus(sorted(SAMPLES.glob("*.jpg")))
    assert mutate(corpus, 1, 7) == mutate(corpus, 1, 7)
    assert len({mutate(corpus, seed, index) for seed in (1, 2) for index in range(50)}) > 90
    assert {file[:2] for file in corpus} == {b"\xff\xd8", b"\x89P", b"RI", b"BM", b"II", b"MM", b"GI"}
    for file in corpus:
        fields = number_fields(file)
        assert fields
        assert sum(field.offset + field.size <= len(file) for field in fields) > len(fields) / 2
    assert len(list(png_chunks(next(file for file in corpus if file.startswith(b"\x89PNG"))))) >= 3
    assert len(set(MUTATIONS)) == 9
