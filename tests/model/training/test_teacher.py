from pathlib import Path

import numpy as np
import pytest
import torch
from zfserve_model.training.augment import normalise
from zfserve_model.training.teacher import PhotoTeacher, ViewTeacher, distillation_loss, teacher_scores

CPU = torch.device("cpu")


def test_photos_are_scored_once(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    counted: list[int] = []
    scores = teacher_scores(pixels, tmp_path / "scores.safetensors", CPU, counted.append)
    assert (scores.shape, scores.dtype) == ((2, 1000), torch.float16)
    assert not torch.equal(scores[0], scores[1])
    again = teacher_scores(pixels, tmp_path / "scores.safetensors", CPU, counted.append)
    assert torch.equal(again, scores)
    assert counted == [2]


def test_of_views_that_change_nothing_it_says_what_it_says_of_the_photos(tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    scores = teacher_scores(pixels, tmp_path / "scores.safetensors", CPU, lambda count: None)
    rows = np.array([2, 0])
    seen = normalise(torch.from_numpy(pixels[rows]))
    of_views = ViewTeacher(CPU)(rows, lambda: seen)
    of_photos = PhotoTeacher(scores)(rows, lambda: pytest.fail("it knows the photos"))
    assert not of_views.requires_grad
    np.testing.assert_allclose(of_views, of_photos.float(), atol=0.02)


def test_divergence_by_hand() -> None:
    # At temperature 2 the teacher has (3/4, 1/4) and the student (1/2, 1/2).
    teacher, student = torch.tensor([[2 * np.log(3.0), 0.0]]), torch.tensor([[1.0, 1.0]])
    expected = 4 * (0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5))
    assert distillation_loss(student, teacher, temperature=2.0).item() == pytest.approx(expected, rel=1e-5)
    assert distillation_loss(teacher, teacher, temperature=2.0).item() == pytest.approx(0, abs=1e-6)
