import re

import pytest
from zfserve_model.preprocessing import Preprocessing


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"resize": "pad"}, "resize rule 'pad' is unknown; choose one of squash, crop"),
        ({"interpolation": "nearest"}, "interpolation 'nearest' is unknown; choose one of bilinear, bicubic"),
        ({"channel_order": "grb"}, "channel order 'grb' is unknown; choose one of rgb, bgr"),
        ({"resize": "crop", "shorter_side": 100}, "shorter_side is 100; it must be at least 224"),
        ({"resize": "crop", "shorter_side": 256, "width": 300}, "shorter_side is 256; it must be at least 300"),
        ({"height": 0}, "the input is 0 x 224; both sides must be at least 1"),
        ({"std": (0.0, 1.0, 1.0)}, "those of std must be positive"),
        ({"mean": (0.5,)}, "one number per channel"),
    ],
)
def test_impossible_preprocessing_is_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Preprocessing(**wrong)  # type: ignore[arg-type]


def test_a_squash_needs_no_shorter_side() -> None:
    assert Preprocessing(resize="squash", height=300, width=299).shorter_side == 256
