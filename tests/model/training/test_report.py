import csv
import subprocess
from pathlib import Path

import pytest
import torch
from fakes.toy_run import CPU
from PIL import Image
from zfserve_model.training.report import describe_session, draw_curves, source_commit, write_log
from zfserve_model.training.state import EpochResult

RESULTS = [
    EpochResult(1, 64, 0.01, 0.9, 0.5, 0.8, 0.5, 0.9, 2, 10.0, 1.5),
    EpochResult(2, 64, 0.02, 0.7, 0.6, 0.6, 0.75, 1.0, 2, 11.0, 3.0),
    EpochResult(3, 224, 0.01, 0.5, 0.75, 1 / 3, 1.0, 1.0, 6, 3.0, 9.0),
]


def test_the_log_has_a_row_per_epoch(tmp_path: Path) -> None:
    write_log(RESULTS, tmp_path / "log.csv")
    with (tmp_path / "log.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[2]["val_loss"] == "0.333333"
    assert list(rows[0]) == list(vars(RESULTS[0]))


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_the_curves_can_be_drawn_at_any_time(epochs: int, tmp_path: Path) -> None:
    draw_curves(RESULTS[:epochs], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > image.height > 200
        colours = image.convert("RGB").getcolors(maxcolors=1 << 20)
    assert colours is not None
    assert len(colours) > 10


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_code_and_of_nothing_else(tmp_path: Path) -> None:
    code, other = tmp_path / "code.py", tmp_path / "other.py"
    code.write_text("1\n")
    assert source_commit(code) is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "tag", "v1")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert source_commit(code) == head
    other.write_text("not part of it\n")
    assert source_commit(other) is None
    assert source_commit(code) == head
    code.write_text("2\n")
    assert source_commit(code) == f"{head}-dirty"


def test_a_session_says_what_ran_where() -> None:
    session = describe_session("zfserve train --data x", 7, CPU, torch.bfloat16)
    assert (session.command, session.first_step, session.device) == ("zfserve train --data x", 7, "cpu")
    assert session.precision == "bfloat16"
    assert type(session.torch) is str, "a state with any other class in it could not be loaded again"
    assert session.threads >= 1
