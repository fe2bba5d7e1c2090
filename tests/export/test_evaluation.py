from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_export.evaluation import Confusion, evaluate, evaluate_engine, score
from zfserve_export.photos import LabelledPhotos, list_labelled_photos
from zfserve_runtime.bundle import Bundle

ColourBundle = Callable[..., Bundle]


def probabilities(*rows: list[float]) -> npt.NDArray[np.float32]:
    return np.asarray(rows, np.float32)


def labels(*values: int) -> npt.NDArray[np.int64]:
    return np.asarray(values, np.int64)


def test_a_case_by_hand() -> None:
    found = score(
        probabilities(
            [0.9, 0.1, 0.0, 0.0, 0.0, 0.0],  # right
            [0.1, 0.2, 0.3, 0.15, 0.05, 0.2],  # class 0 is fifth
            [0.3, 0.2, 0.2, 0.1, 0.15, 0.05],  # class 5 is last
            [0.4, 0.6, 0.0, 0.0, 0.0, 0.0],  # class 0 is second
        ),
        labels(0, 0, 5, 0),
    )
    assert found.count == 4
    assert found.top1 == 0.25
    assert found.top5 == 0.75
    expected = np.zeros((6, 6), np.int64)
    expected[0, 0] = expected[0, 2] = expected[5, 0] = expected[0, 1] = 1
    assert (found.confusion == expected).all()
    assert found.class_counts().tolist() == [3, 0, 0, 0, 0, 1]
    assert found.class_accuracy() == pytest.approx([1 / 3, np.nan, np.nan, np.nan, np.nan, 0], nan_ok=True)


def test_of_equals_the_first_ranks_higher() -> None:
    uniform = probabilities(*[[1 / 6] * 6] * 6)
    found = score(uniform, labels(0, 1, 2, 3, 4, 5))
    assert found.top1 == pytest.approx(1 / 6)
    assert found.top5 == pytest.approx(5 / 6)
    assert found.confusion[:, 0].tolist() == [1] * 6


def test_numbers_that_are_none_are_wrong() -> None:
    found = score(probabilities([np.nan] * 6), labels(3))
    assert (found.top1, found.top5) == (0, 0)


def test_fewer_than_five_classes_are_always_among_the_best() -> None:
    assert score(probabilities([0.1, 0.9]), labels(0)).top5 == 1


def test_worst_confusions_come_first_and_right_answers_never() -> None:
    rows = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1, 2, 2, 2]]
    found = score(rows, labels(0, 0, 0, 0, 0, 1, 2, 2))
    assert found.worst_confusions(5) == [Confusion(0, 1, 2), Confusion(1, 2, 1)]
    assert found.worst_confusions(1) == [Confusion(0, 1, 2)]


def test_every_photo_is_scored_against_its_own_label(colour_bundle: ColourBundle, tmp_path: Path) -> None:
    """Scores red, green and blue photos, one of them in the wrong folder. The last batch is smaller than the others."""
    photos = put_colours(tmp_path / "photos")
    bundle = colour_bundle()
    engine = OnnxEngine(bundle, "fp32", threads=1, max_batch_size=2)
    done: list[int] = []
    found = evaluate_engine(engine, bundle.manifest.input, photos, done.append)
    assert done == [2, 2, 1]
    assert found.count == 5
    assert found.top1 == 0.8
    assert found.confusion.tolist() == [[2, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_any_classifier_will_do(tmp_path: Path, colour_bundle: ColourBundle) -> None:
    photos = put_colours(tmp_path / "photos")

    def always_green(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.tile(np.array([0, 1, 0], np.float32), (len(pixels), 1))

    found = evaluate(always_green, colour_bundle().manifest.input, photos, batch_size=4)
    assert found.top1 == 0.4
    assert found.confusion.tolist() == [[0, 2, 0], [0, 2, 0], [0, 1, 0]]


def put_colours(folder: Path) -> LabelledPhotos:
    for class_id, colours in {"red": ("red", "#800000"), "green": ("lime", "blue"), "blue": ("blue",)}.items():
        (folder / f"c-{class_id}").mkdir(parents=True)
        for index, colour in enumerate(colours):
            Image.new("RGB", (30, 20), colour).save(folder / f"c-{class_id}" / f"{index}.png")
    return list_labelled_photos(folder, ("c-red", "c-green", "c-blue"))
