"""Decodes about six hundred of the files of `python -m tools.fuzz`. Hypothesis chooses half of them."""

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zfserve_engines.images.codec import silence_decoders

from tools.fuzz.corpus import make_corpus
from tools.fuzz.mutations import mutate
from tools.fuzz.oracle import OUTCOMES, judge

SAMPLES = Path(__file__).parents[3] / "samples"


@cache
def corpus() -> list[bytes]:
    return make_corpus(sorted(SAMPLES.glob("*.jpg")))


def test_every_seed_is_sound_before_it_is_damaged() -> None:
    outcomes = [judge(data) for data in corpus()]
    # 32-bit samples have no agreed meaning, so such a file is refused even if it is sound.
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
