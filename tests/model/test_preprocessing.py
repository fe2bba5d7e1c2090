import re

import pytest
from zfserve_model.preprocessing import PRESETS, Preprocessing, PreprocessingFacts, complete


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


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_and_a_size_and_a_resize_rule_is_whole(name: str) -> None:
    facts: PreprocessingFacts = {
        "resize": "crop",
        "interpolation": "bicubic",
        **PRESETS[name],
        "height": 299,
        "width": 299,
    }
    preprocessing = complete(facts)
    assert preprocessing.shorter_side == 342, "299 / 0.875, rounded up"
    assert preprocessing.channel_order == ("bgr" if name == "imagenet-caffe" else "rgb")


@pytest.mark.parametrize(
    ("name", "darkest", "brightest"),
    [
        ("imagenet-torch", (-2.1179, -2.0357, -1.8044), (2.2489, 2.4286, 2.6400)),
        ("imagenet-tf", (-1, -1, -1), (1, 1, 1)),
        ("imagenet-caffe", (-123.68, -116.779, -103.939), (131.32, 138.221, 151.061)),
        ("0-1", (0, 0, 0), (1, 1, 1)),
        ("none", (0, 0, 0), (255, 255, 255)),
    ],
)
def test_the_presets_give_the_range_of_their_frameworks(
    name: str, darkest: tuple[float, ...], brightest: tuple[float, ...]
) -> None:
    facts = PRESETS[name]
    for value, expected in ((0, darkest), (1, brightest)):
        normalised = [(value - mean) / std for mean, std in zip(facts["mean"], facts["std"], strict=True)]
        assert normalised == pytest.approx(expected, abs=1e-4)
