"""Tests the parts of `zfserve transfer` by hand: folds, near-duplicates, the classifier and its mean."""

from pathlib import Path

import numpy as np
import pytest
from fakes.study_photos import small_photo
from PIL import Image
from zfserve_studies.transfer import classifier
from zfserve_studies.transfer.classifier import mean_of_classes, scaling
from zfserve_studies.transfer.data_set import DataUnusable, Fold, draw_folds, read_data_set, used_photos
from zfserve_studies.transfer.duplicates import near_duplicates, normalised, thumbnails
from zfserve_studies.transfer.experiment import Point, measure_layer, readable_part, without_duplicates


def data_set(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        for at in range(count):
            (root / name).mkdir(parents=True, exist_ok=True)
            small_photo(root / name / f"{at}.jpg")
    return root


def indices(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_folders_are_classes(tmp_path: Path) -> None:
    data = read_data_set(data_set(tmp_path, tench=2, church=1, ignored=0))
    assert data.classes == ("church", "tench")
    assert [photo.name for photo in data.photos] == ["0.jpg", "0.jpg", "1.jpg"]
    assert data.labels.tolist() == [0, 1, 1]
    with pytest.raises(DataUnusable, match="has 0 folders with photos; name a folder with a folder for each class"):
        read_data_set(tmp_path / "tench")


def test_folds_are_drawn_within_classes_and_never_share_photos(tmp_path: Path) -> None:
    data = read_data_set(data_set(tmp_path, a=5, b=4))
    folds = draw_folds(data, folds=3, train=2, test=2, seed=7)
    for fold in folds:
        assert [len(part) for part in fold.train] == [2, 2]
        assert [len(part) for part in fold.test] == [2, 2]
        for at in range(2):
            both = {*fold.train[at].tolist(), *fold.test[at].tolist()}
            assert len(both) == 4
            assert {int(data.labels[each]) for each in both} == {at}
    again = draw_folds(data, folds=3, train=2, test=2, seed=7)
    assert used_photos(again).tolist() == used_photos(folds).tolist()
    with pytest.raises(DataUnusable, match="b has 4 photos, and 4 to learn from leave none to test"):
        draw_folds(data, folds=1, train=4, test=2, seed=0)


def test_brightness_and_contrast_do_not_hide_a_near_duplicate(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 120, (32, 32), dtype=np.uint8)
    for name, values in (("a", pixels), ("b", 2 * pixels + 10), ("c", pixels[::-1]), ("d", 0 * pixels + 9)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    (tmp_path / "e.png").write_text("no photo")
    vectors = thumbnails([tmp_path / f"{name}.png" for name in "abcde"], lambda _done, _total: None)
    ((one, other, correlation),) = near_duplicates(vectors, vectors)
    assert (one, other) == (0, 1)
    assert correlation == pytest.approx(1, abs=1e-5)
    assert [pair[:2] for pair in near_duplicates(vectors[1:2], vectors.copy())] == [(0, 0), (0, 1)]
    assert not vectors[3:].any()


def test_normalised_values_have_mean_0_and_norm_1() -> None:
    assert normalised(np.array([1, 3], dtype=np.float32)).tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])


def test_a_test_photo_with_a_duplicate_in_the_training_part_is_left_out() -> None:
    fold = Fold((indices(0, 1), indices(4)), (indices(2, 3), indices(5, 6)))
    # 0 is learned from, so 2 goes. 3 and 5 are both tested, so they stay. 6 is known to the network.
    (cleaned,) = without_duplicates([fold], [(0, 2), (3, 5)], frozenset({6}))
    assert [part.tolist() for part in cleaned.test] == [[3], [5]]
    assert [part.tolist() for part in cleaned.train] == [[0, 1], [4]]
    kept = readable_part(cleaned, frozenset({0, 3, 4}))
    assert [part.tolist() for part in (*kept.train, *kept.test)] == [[0], [4], [3], []]


def test_features_are_standardised_by_the_training_part() -> None:
    mean, scale = scaling(np.array([[1, 5], [3, 5]], dtype=np.float32))
    # The second feature does not vary, and becomes 0. The first has deviation 1, over the root of two features.
    assert mean.tolist() == [2, 5]
    assert scale.tolist() == pytest.approx([0.5**0.5, 0])


@pytest.mark.parametrize("most_values", [classifier.MOST_VALUES, 0])
def test_both_solvers_separate_what_a_plane_separates(most_values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "MOST_VALUES", most_values)
    labels = indices(*[0, 1] * 100)
    train = np.random.default_rng(0).normal(size=(200, 32)).astype(np.float32) + 4 * labels[:, None].astype(np.float32)
    test, test_labels = np.array([[0] * 32, [4] * 32, [4] * 32], dtype=np.float32), indices(0, 0, 1)
    # The second photo of class 0 looks like class 1.
    assert classifier.class_accuracies(train, labels, test, test_labels, seed=0) == {0: 0.5, 1: 1.0}


def test_each_class_counts_the_same_and_folds_have_a_deviation() -> None:
    assert mean_of_classes([0.5, 1.0]) == 0.75
    point = Point(6, (0.5, 0.7))
    assert point.mean == pytest.approx(0.6)
    assert point.deviation == pytest.approx(0.02**0.5)
    assert Point(6, (0.5,)).deviation is None


def test_a_layer_is_measured_for_each_number_of_photos() -> None:
    features = np.array([[1, 0], [1, 0.1], [1, 0], [-1, 0], [-1, 0.1], [-1, 0]], dtype=np.float32)
    fold = Fold((indices(10, 11), indices(20, 21)), (indices(12), indices(22)))
    rows = {10: 0, 11: 1, 12: 2, 20: 3, 21: 4, 22: 5}
    steps: list[None] = []
    points = measure_layer(features, rows, [fold], [1, 2], lambda: steps.append(None))
    assert points == [Point(1, (1.0,)), Point(2, (1.0,))]
    assert len(steps) == 2
    with pytest.raises(DataUnusable, match="too few photos are left"):
        measure_layer(features, rows, [Fold(fold.train, (indices(), indices()))], [1], lambda: None)
