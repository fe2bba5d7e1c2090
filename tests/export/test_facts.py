import pytest
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.facts import classes_of, complete_facts, known_facts, require_facts
from zfserve_model.labels import imagenet_labels
from zfserve_model.preprocessing import PRESETS, PreprocessingFacts

TORCH = PRESETS["imagenet-torch"]
SIZE: PreprocessingFacts = {"height": 8, "width": 8}


@pytest.mark.parametrize(
    ("facts", "classes", "options"),
    [
        (
            {},
            None,
            "add --size HxW, --preprocessing imagenet-torch|imagenet-tf|imagenet-caffe (or --mean R G B, --std R G B, "
            "--resize squash|crop, --interpolation bilinear|bicubic) and --labels FILE (with the labels, one a line)",
        ),
        (SIZE | TORCH, 7, "add --labels FILE (with 7 labels, one a line)"),
        (SIZE | TORCH, 1000, "add --labels imagenet (or --labels FILE)"),
        (SIZE | TORCH, 1001, "add --labels imagenet (or --labels FILE)"),
    ],
)
def test_everything_that_is_missing_is_asked_for_in_one_sentence(
    facts: PreprocessingFacts, classes: int | None, options: str
) -> None:
    with pytest.raises(SourceError) as raised:
        require_facts("toy.onnx", facts, None, classes)
    assert str(raised.value) == f"toy.onnx does not say all that a bundle needs; {options}"


def test_only_the_missing_parts_of_the_preprocessing_are_asked_for() -> None:
    with pytest.raises(SourceError) as raised:
        require_facts("toy.onnx", SIZE | PRESETS["0-1"], {"a": "a"})
    assert str(raised.value).endswith("; add --resize squash|crop and --interpolation bilinear|bicubic")
    require_facts("toy.onnx", SIZE | TORCH, {"a": "a"})


def test_what_the_user_says_wins_and_another_size_moves_the_shorter_side() -> None:
    of_library: PreprocessingFacts = {**TORCH, "height": 224, "width": 224, "shorter_side": 232}
    kept = complete_facts("toy", known_facts(of_library, {"interpolation": "bicubic"}))
    assert (kept.shorter_side, kept.interpolation) == (232, "bicubic")
    larger = complete_facts("toy", known_facts(of_library, {"height": 288, "width": 288}))
    assert (larger.height, larger.shorter_side) == (288, 330), "288 / 0.875, rounded up"


def test_impossible_preprocessing_names_the_source() -> None:
    with pytest.raises(SourceError, match="the preprocessing of toy is impossible: shorter_side is 4"):
        complete_facts("toy", {**TORCH, **SIZE, "shorter_side": 4})


def test_labels_that_do_not_fit_are_refused_with_both_numbers() -> None:
    assert classes_of("toy", {"a": "ant", "b": "bee"}, 2) == (("a", "b"), ("ant", "bee"))
    with pytest.raises(SourceError, match=r"^toy has 3 classes, and the number of labels is 2; give one label"):
        classes_of("toy", {"a": "ant", "b": "bee"}, 3)


def test_tensorflow_has_a_background_before_imagenets_thousand() -> None:
    ids, labels = classes_of("toy", imagenet_labels(), 1001)
    assert (ids[0], labels[0], ids[1], labels[1]) == ("n00000000", "background", "n01440764", "tench")
    assert len(ids) == 1001
    with pytest.raises(SourceError, match="1001 classes, and the number of labels is 1000"):
        classes_of("toy", {str(index): str(index) for index in range(1000)}, 1001)
