"""Provides a tiny bundle with random weights, and requests that fit it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zfserve_model.checkpoint import Checkpoint, save_checkpoint, weights_fingerprint
from zfserve_model.network_layer_table import layer_table
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.preprocessing import Preprocessing
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.bundle import GOLDEN, MANIFEST, WEIGHTS, Bundle, Manifest, file_digest, load_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle"), version="1")


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Provides the next version of the same model, with other weights."""
    return write_bundle(tmp_path_factory.mktemp("bundle"), version="2")


def write_bundle(folder: Path, version: str) -> Bundle:
    spec = NetworkSpec("zfnet-fig3", classes=2, hidden_width=16)
    network = build_network(spec, torch.Generator().manual_seed(6 + int(version))).eval()
    preprocessing = Preprocessing()
    checkpoint = Checkpoint(network, ("n01", "n02"), ("cat", "dog"), preprocessing)
    save_checkpoint(checkpoint, folder / WEIGHTS, torch.float32)
    (folder / GOLDEN).write_bytes(b"only engines read this file")
    manifest = {
        "name": "tiny",
        "version": version,
        "architecture": spec.architecture,
        "feature_width": spec.hidden_width,
        "classes": [{"class_id": "n01", "label": "cat"}, {"class_id": "n02", "label": "dog"}],
        "input": {
            "height": preprocessing.height,
            "width": preprocessing.width,
            "resize": preprocessing.resize,
            "shorter_side": preprocessing.shorter_side,
            "mean": preprocessing.mean,
            "std": preprocessing.std,
        },
        "layers": [asdict(row) for row in layer_table(network)],
        "artefacts": {},
        "fingerprint": weights_fingerprint(network),
        "files": {name: file_digest(folder / name) for name in (WEIGHTS, GOLDEN)},
    }
    (folder / MANIFEST).write_text(Manifest.model_validate(manifest).model_dump_json())
    return load_bundle(folder)


@pytest.fixture(scope="session")
def pixels() -> bytes:
    return np.random.default_rng(3).integers(0, 256, (224, 224, 3), np.uint8).tobytes()


@pytest.fixture
def request_for(bundle: Bundle, pixels: bytes) -> Callable[..., worker_pb2.ProjectRequest]:
    """Returns a function that builds a request that the worker accepts. Its keywords replace fields of the request."""

    def build(**fields: Any) -> worker_pb2.ProjectRequest:
        defaults = {"fingerprint": bundle.manifest.fingerprint, "pixels": pixels, "layer": "conv3"}
        return worker_pb2.ProjectRequest(**(defaults | fields))

    return build
