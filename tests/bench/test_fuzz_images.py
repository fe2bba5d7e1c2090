"""The fuzzer notices what it is there to notice."""

import sys
from pathlib import Path

import pytest
from zfserve_bench import fuzz_images
from zfserve_bench.fuzz_images import Fault, fuzz, judge
from zfserve_bench.image_corpus import make_corpus
from zfserve_bench.image_mutations import MUTATIONS, mutate, number_fields, png_chunks

SAMPLES = Path(__file__).parent.parent.parent / "samples"

# Stands for a process that decodes: file 2 is its death, file 4 is not as it should be.
PROCESS = """
import json, os, signal, sys
first, inputs = int(sys.argv[2]), int(sys.argv[4])
for index in range(first, first + inputs):
    if index == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    print(json.dumps([index, "5.0 s" if index == 4 else "decoded"]), flush=True)
"""


def test_a_crash_and_a_fault_are_told_and_the_rest_goes_on() -> None:
    outcomes, faults = fuzz([sys.executable, "-c", PROCESS], range(6))
    assert outcomes == {"decoded": 4, "fault": 2}
    assert [fault.index for fault in faults] == [2, 4]
    assert "ended with -11" in faults[0].what
    assert faults[1] == Fault(4, "5.0 s")


def test_words_on_standard_error_are_a_fault() -> None:
    outcomes, faults = fuzz([sys.executable, "-c", PROCESS + "print('libtiff: oh', file=sys.stderr)"], range(3, 4))
    assert outcomes == {"decoded": 1}
    assert "libtiff: oh" in faults[0].what


@pytest.mark.parametrize(
    ("error", "outcome"), [(OSError("no"), "OSError: no"), (SystemError("bad"), "SystemError: bad")]
)
def test_an_error_that_tells_a_caller_nothing_is_a_fault(
    error: Exception, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise error

    monkeypatch.setattr(fuzz_images, "decode_image", decode)
    assert judge(b"") == outcome


def test_files_are_told_by_seed_and_index_and_every_format_has_fields_to_lie_in() -> None:
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
