"""Provides a tiny bundle with random weights, and requests that fit it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.residual_model import HEIGHT, WIDTH, write_residual_bundle
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.bundle import Bundle, load_bundle

SCHEMA_1 = Path(__file__).parent.parent / "bundles" / "schema-1"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_residual_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Provides the next version of the same model, with other weights."""
    return write_residual_bundle(tmp_path_factory.mktemp("bundle"), version="2", seed=1)


@pytest.fixture(scope="session")
def bundle_with_attention(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Provides a network with a softmax that no projection passes."""
    return write_residual_bundle(tmp_path_factory.mktemp("bundle"), version="3", attention=True)


@pytest.fixture(scope="session")
def schema_1_bundle() -> Bundle:
    """Provides a bundle that release 0.1.0 exported, of a narrow `zfnet-fig3`."""
    return load_bundle(SCHEMA_1)


@pytest.fixture(scope="session")
def pixels() -> bytes:
    return np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8).tobytes()


@pytest.fixture
def request_for(bundle: Bundle, pixels: bytes) -> Callable[..., worker_pb2.ProjectRequest]:
    """Returns a function that builds a request that the worker accepts. Its keywords replace fields of the request."""

    def build(**fields: Any) -> worker_pb2.ProjectRequest:
        defaults = {"fingerprint": bundle.manifest.fingerprint, "pixels": pixels, "layer": "stage2"}
        return worker_pb2.ProjectRequest(**(defaults | fields))

    return build


@pytest.fixture
def explain_request_for(bundle: Bundle, pixels: bytes) -> Callable[..., worker_pb2.ExplainRequest]:
    """Returns a function that builds a request for an explanation. Its keywords replace fields of the request."""

    def build(**fields: Any) -> worker_pb2.ExplainRequest:
        defaults = {"fingerprint": bundle.manifest.fingerprint, "pixels": pixels, "layer": "last"}
        return worker_pb2.ExplainRequest(**(defaults | fields))

    return build
