"""Versions are copied into the folder of a real process, and its clients notice only the new answers."""

import json
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from processes import running_service
from zfserve import Classification, Client, ModelStatus
from zfserve_engines.golden import Golden, load_golden, write_golden
from zfserve_runtime.bundle import GOLDEN, MANIFEST, Bundle, file_digest

ColourBundle = Callable[..., Bundle]

RED = np.full((8, 8, 3), (255, 0, 0), np.uint8)


def wait_for(client: Client, version: str, state: str) -> ModelStatus:
    while True:
        for status in client.list_models():
            if (status.version, status.state) == (version, state):
                return status


def test_half_copied_and_bad_versions_are_refused_and_good_ones_take_over(
    colour_bundle: ColourBundle, tmp_path: Path
) -> None:
    model = tmp_path / "models" / "colours"
    shutil.copytree(colour_bundle("one").folder, model / "1")
    arriving = colour_bundle("two", version="2", fingerprint="cd" * 32).folder
    bad = colour_bundle("three", version="3")
    answers: list[Classification] = []
    over = threading.Event()
    flags = ("--no-worker", "--threads", "1", "--engine", "onnx-cpu", "--reload-interval", "0.02")
    with running_service(model.parent, tmp_path, *flags) as service, Client(service.address) as client:

        def keep_asking() -> None:
            while not over.is_set():
                answers.append(client.classify(RED))  # raises if an answer is lost

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            (model / "2").mkdir()
            shutil.copy(arriving / MANIFEST, model / "2")
            assert "missing from the bundle" in wait_for(client, "2", "failed").reason
            for file in arriving.iterdir():
                shutil.copy(file, model / "2")
            assert wait_for(client, "2", "ready").is_default
            _falsify_golden(bad)
            shutil.copytree(bad.folder, model / ".3").rename(model / "3")
            assert "differs from the recorded outputs" in wait_for(client, "3", "failed").reason
            shutil.rmtree(model / "3")
            shutil.rmtree(model / "2")
            service.process.send_signal(signal.SIGHUP)
            assert wait_for(client, "1", "ready").is_default
        finally:
            over.set()
            asking.join()
    assert [answer.classes[0].label for answer in answers] == ["red"] * len(answers)
    assert {answer.model.version for answer in answers} == {"1", "2"}


def _falsify_golden(bundle: Bundle) -> None:
    """Writes wrong golden outputs into a bundle, with a digest that fits."""
    golden, file = load_golden(bundle), bundle.folder / MANIFEST
    write_golden(Golden(golden.pixels, {"fp32": golden.probabilities["fp32"][:, ::-1]}), bundle.folder)
    manifest = json.loads(file.read_text())
    manifest["files"][GOLDEN] = file_digest(bundle.folder / GOLDEN)
    file.write_text(json.dumps(manifest))
