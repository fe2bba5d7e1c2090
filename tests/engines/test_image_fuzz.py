"""A few hundred of the files of `python -m zfserve_bench.fuzz_images`, chosen by hypothesis."""

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zfserve_bench.fuzz_images import OUTCOMES, judge
from zfserve_bench.image_corpus import make_corpus
from zfserve_bench.image_mutations import mutate
from zfserve_engines.image_codec import silence_decoders

SAMPLES = Path(__file__).parent.parent.parent / "samples"


@cache
def corpus() -> list[bytes]:
    return make_corpus(sorted(SAMPLES.glob("*.jpg")))


def test_every_file_that_is_damaged_later_is_sound_at_first() -> None:
    outcomes = [judge(data) for data in corpus()]
    # Samples of 32 bits have no agreed meaning: refused, whole or not.
    assert sorted(set(outcomes)) == ["IMAGE_UNDECODABLE", "decoded"]
    assert outcomes.count("IMAGE_UNDECODABLE") == 3


@given(seed=st.integers(0, 2**63))
@settings(max_examples=300, derandomize=True)
def test_a_damaged_file_is_decoded_or_refused_and_nothing_else(seed: int) -> None:
    assert judge(mutate(corpus(), seed, 0)) in OUTCOMES


def test_damage_writes_nothing_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    silence_decoders()
    for index in range(300):
        judge(mutate(corpus(), 1, index))
    assert capfd.readouterr().err == ""
