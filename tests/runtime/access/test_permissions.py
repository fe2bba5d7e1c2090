"""Every method of our services is public, or belongs to one group that an operator can permit."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
import zfserve_protos
from zfserve_runtime.access.permissions import GROUPS, is_public, permitted_methods


def methods() -> Iterator[str]:
    for module in pkgutil.walk_packages(zfserve_protos.__path__, "zfserve_protos."):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(module.name).DESCRIPTOR
            for service in descriptor.services_by_name.values():
                yield from (f"/{service.full_name}/{method.name}" for method in service.methods)


def test_a_method_is_public_or_in_one_group() -> None:
    places = {
        method: [name for name, group in GROUPS.items() if method in group] + ["public"] * is_public(method)
        for method in methods()
    }
    assert {method: found for method, found in places.items() if len(found) != 1} == {}


def test_the_search_finds_the_methods() -> None:
    assert {"/zfserve.v1.VisionService/Classify", "/zfserve.worker.v1.WorkerService/Project"} <= set(methods())


def test_words_become_methods() -> None:
    assert permitted_methods(("classify", "/a.B/C")) == frozenset({"/zfserve.v1.VisionService/Classify", "/a.B/C"})
    assert permitted_methods(("classify", "all")) is None
    with pytest.raises(ValueError, match=r"Classify, a\.B/C permits nothing"):
        permitted_methods(("Classify", "a.B/C"))


def test_health_is_public() -> None:
    assert is_public("/grpc.health.v1.Health/Watch")
    assert not is_public("/grpc.health.v1.HealthX/Check")
    assert not is_public("/zfserve.v1.VisionService/Classify")
