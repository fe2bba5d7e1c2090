import json
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ColourBundle
from fakes.engine_store import (
    A10,
    AHEAD,
    H100,
    L4,
    RTX_4090,
    TUNED,
    Builder,
    Server,
    failing,
    names,
    on_card,
    quiet,
    reason,
    truncate,
    with_settings,
)
from zfserve_engines.store.identity import EngineIdentity, EngineRequest
from zfserve_engines.store.record import StoredEngine
from zfserve_engines.store.store import EngineStore, NoValidEngine
from zfserve_engines.tensorrt.builder import BuiltEngine
from zfserve_runtime.file_lock import exclusive_lock

KEY = EngineIdentity.of(TUNED).key


def test_an_engine_is_built_once(store: EngineStore) -> None:
    built = store.find_or_build(TUNED, Builder(b"first"), quiet)
    again = Builder(b"second")
    assert store.find_or_build(TUNED, again, quiet) == store.find(TUNED) == built
    assert built.plan == built.file.read_bytes() == b"first"
    assert not again.given
    assert names(store) == {f"{KEY}.engine", f"{KEY}.json"}


def test_a_record_says_in_full_what_was_built(store: EngineStore) -> None:
    record = json.loads(store.find_or_build(TUNED, Builder(b"plan"), quiet).file.with_suffix(".json").read_text())
    assert record["identity"] == {
        "graph_sha256": "ab" * 32,
        "tensors": ["pixels: uint8 (N, 8, 8, 3)", "probabilities: float32 (N, 3)", "features: float32 (N, 3)"],
        "settings": {
            "library": "tensorrt",
            "precision": "fp16",
            "batches": [1, 8, 32],
            "compute_capabilities": ["8.6"],
            "workspace_bytes": None,
            "optimization_level": 3,
            "tf32": False,
        },
        "library_version": "11.0.0.114",
        "card": {
            "name": "NVIDIA A10",
            "compute_capability": "8.6",
            "driver_version": "580.65.06",
            "cuda_version": "13.0",
        },
        "system": "Linux",
        "architecture": "x86_64",
    }
    assert (record["model"], record["version"], record["size_bytes"]) == ("zfnet", "1", 4)
    assert record["summary"]["layers"] == [{"name": "conv1", "kind": "CONVOLUTION", "precision": "float16"}]


def test_an_empty_store_says_how_to_fill_it(store: EngineStore) -> None:
    with pytest.raises(NoValidEngine, match=r"there is no fp16 engine of zfnet 1 by tensorrt 11.*`zfserve compile`"):
        store.find(TUNED)
    assert not store.folder.exists()
    assert store.entries() == []


OTHERS = {
    "weights": (replace(TUNED, graph_sha256="cd" * 32, version="2"), "it was built for other weights"),
    "version": (replace(TUNED, library_version="11.1"), "it was built by tensorrt 11.0.0.114, and 11.1 is installed"),
    "card": (on_card(TUNED, H100), "it was built for NVIDIA A10 (8.6), this is NVIDIA H100 (9.0)"),
    "driver": (on_card(TUNED, replace(A10, driver_version="591.10")), "it was built under driver 580.65.06"),
    "settings": (with_settings(TUNED, tf32=True), "it was built with tf32 off, not on"),
}


@pytest.mark.parametrize(("wanted", "sentence"), OTHERS.values(), ids=OTHERS)
def test_an_engine_for_another_request_is_refused_and_a_new_one_is_built(
    store: EngineStore, wanted: EngineRequest, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.find_or_build(TUNED, Builder(b"for the A10"), quiet)
    assert (reason(store, wanted) or "").startswith(f"engine {KEY[:12]} is refused: {sentence}")
    assert store.find_or_build(wanted, Builder(b"another"), quiet).plan == b"another"
    assert sentence in caplog.text
    assert store.find(TUNED).plan == b"for the A10"
    assert store.find(wanted).plan == b"another"


@pytest.mark.parametrize(("wanted", "sentence"), OTHERS.values(), ids=OTHERS)
def test_the_policy_refuse_does_not_rebuild_an_invalid_engine(
    store: EngineStore, wanted: EngineRequest, sentence: str
) -> None:
    store.find_or_build(TUNED, Builder(), quiet, on_invalid="refuse")  # the store is empty, so no engine is refused
    builder = Builder()
    with pytest.raises(NoValidEngine, match=sentence.replace("(", r"\(").replace(")", r"\)")):
        store.find_or_build(wanted, builder, quiet, on_invalid="refuse")
    assert not builder.given


def test_the_policy_refuse_waits_for_an_engine_that_is_being_built(store: EngineStore) -> None:
    store.find_or_build(on_card(TUNED, H100), Builder(), quiet)  # TUNED cannot use this engine
    waits = threading.Event()

    def build(timing_cache: bytes) -> BuiltEngine:
        waiting = others.submit(
            store.find_or_build, TUNED, failing(AssertionError("built twice")), lambda *progress: waits.set(), "refuse"
        )
        waiting_for.append(waiting)
        assert waits.wait(60)
        return Builder(b"plan")(timing_cache)

    waiting_for: list[Future[StoredEngine]] = []
    with ThreadPoolExecutor(1) as others:
        store.find_or_build(TUNED, build, quiet)
    assert waiting_for[0].result().plan == b"plan"


def test_the_error_explains_the_nearest_of_several_engines(store: EngineStore) -> None:
    for request in (with_settings(TUNED, tf32=True), replace(on_card(TUNED, H100), graph_sha256="cd" * 32)):
        store.find_or_build(request, Builder(), quiet)
    assert (reason(store, TUNED) or "").endswith("it was built with tf32 on, not off")
    truncate(store.find_or_build(TUNED, Builder(), quiet).file)
    assert (reason(store, TUNED) or "").endswith("its plan has 3 of 4 bytes")


def test_one_store_serves_many_models(store: EngineStore) -> None:
    other = replace(TUNED, model="alexnet", graph_sha256="cd" * 32)
    store.find_or_build(TUNED, Builder(b"zfnet"), quiet)
    assert reason(store, other) is None  # another model's engine is no reason to refuse
    store.find_or_build(other, Builder(b"alexnet"), quiet, on_invalid="refuse")
    assert (store.find(TUNED).plan, store.find(other).plan) == (b"zfnet", b"alexnet")


def test_two_models_of_one_graph_share_its_engine(store: EngineStore) -> None:
    store.find_or_build(TUNED, Builder(b"plan"), quiet)
    assert store.find(replace(TUNED, model="copy")).plan == b"plan"


def test_an_engine_built_ahead_of_time_is_found_on_every_gpu_that_it_supports(store: EngineStore) -> None:
    ahead = store.find_or_build(AHEAD, Builder(), quiet)
    assert store.find(on_card(AHEAD, A10)) == store.find(on_card(AHEAD, RTX_4090)) == ahead
    assert store.find(with_settings(AHEAD, compute_capabilities=("8.9",))) == ahead
    assert (reason(store, on_card(AHEAD, H100)) or "").endswith(
        "it was built for compute capability 8.6, 8.9, this is NVIDIA H100 (9.0)"
    )


def test_the_newest_valid_engine_is_taken(store: EngineStore) -> None:
    for letter, capabilities in ((b"a", ("8.6", "8.9")), (b"b", ("8.9", "12.0")), (b"c", ("8.6",))):
        store.find_or_build(with_settings(AHEAD, compute_capabilities=capabilities), Builder(letter), quiet)
    assert store.find(on_card(AHEAD, L4)).plan == b"b"


def test_a_request_with_a_minimum_batch_takes_the_newest_with_any_settings(store: EngineStore) -> None:
    for letter, level in ((b"a", 3), (b"b", 5), (b"c", 1)):
        store.find_or_build(with_settings(TUNED, optimization_level=level), Builder(letter), quiet)
    assert store.find(replace(TUNED, min_batch_size=8)).plan == b"c"
    assert store.find(TUNED).plan == b"a"


def test_a_build_starts_from_the_timings_of_that_gpu(store: EngineStore) -> None:
    first, second = Builder(timing_cache=b"one"), Builder(timing_cache=b"one and two")
    store.find_or_build(TUNED, first, quiet)
    store.find_or_build(with_settings(TUNED, batches=(1,)), second, quiet)
    third = Builder()
    store.find_or_build(with_settings(TUNED, batches=(2,)), third, quiet)
    assert (first.given, second.given, third.given) == ([b""], [b"one"], [b"one and two"])
    assert list(store.timing_caches().values()) == ["11.0.0.114"]


@pytest.mark.parametrize(
    "other",
    [on_card(TUNED, H100), on_card(TUNED, replace(A10, driver_version="9")), replace(TUNED, library_version="11.1")],
)
def test_timings_of_another_gpu_are_not_used(store: EngineStore, other: EngineRequest) -> None:
    store.find_or_build(TUNED, Builder(timing_cache=b"measured"), quiet)
    builder = Builder()
    store.find_or_build(other, builder, quiet)
    assert builder.given == [b""]


def test_a_damaged_timing_cache_is_ignored(store: EngineStore) -> None:
    store.find_or_build(TUNED, Builder(timing_cache=b"measured"), quiet)
    truncate(next(iter(store.timing_caches())))
    builder = Builder()
    store.find_or_build(with_settings(TUNED, batches=(1,)), builder, quiet)
    assert builder.given == [b""]


def test_a_runtime_cache_belongs_to_an_engine_and_a_gpu(store: EngineStore) -> None:
    engine = store.find_or_build(AHEAD, Builder(), quiet)
    cache = engine.runtime_cache(L4)
    cache.write(b"kernels")
    assert store.find(on_card(AHEAD, L4)).runtime_cache(L4).read() == b"kernels"
    assert engine.runtime_cache(RTX_4090).read() is None
    assert engine.runtime_cache(replace(L4, driver_version="591.10")) == cache  # TensorRT itself checks the driver


def test_other_files_in_the_folder_are_left_alone(store: EngineStore) -> None:
    store.find_or_build(TUNED, Builder(), quiet)
    for name in ("TensorrtExecutionProvider_graph_1_0_sm86.engine", "notes.json", f".{KEY}.json", "README.md"):
        (store.folder / name).touch()
    assert [entry.key for entry in store.entries()] == [KEY]
    assert store.partial_files() == []


def test_an_engine_is_removed_with_all_its_files(store: EngineStore) -> None:
    engine, other = (store.find_or_build(request, Builder(), quiet) for request in (AHEAD, TUNED))
    engine.runtime_cache(L4).write(b"kernels")
    (entry,) = (entry for entry in store.entries() if entry.file == engine.file)
    assert store.remove(entry)
    assert names(store) == {other.file.name, other.file.with_suffix(".json").name}


def test_an_engine_in_use_or_being_built_is_not_removed(store: EngineStore) -> None:
    engine = store.find_or_build(TUNED, Builder(), quiet)
    (entry,) = store.entries()
    server, another = Server(), Server()
    engine.hold_lock_for(server)
    engine.hold_lock_for(another)
    assert store.is_in_use(entry)
    del another
    assert not store.remove(entry)
    del server
    assert not store.is_in_use(entry)
    with exclusive_lock(store.folder / f"{KEY}.lock", on_wait=None):
        assert store.is_building(entry)
        assert store.is_in_use(entry)
        assert not store.remove(entry)
    assert store.entries() == [entry]
    assert store.find(TUNED) == engine
    assert store.remove(entry)


def test_an_engine_that_was_removed_can_still_be_run(store: EngineStore) -> None:
    engine = store.find_or_build(TUNED, Builder(), quiet)
    assert store.remove(store.entries()[0])
    engine.hold_lock_for(Server())
    assert names(store) == set()


def test_the_store_is_in_the_bundle_unless_another_is_named(colour_bundle: ColourBundle, tmp_path: Path) -> None:
    bundle = colour_bundle()
    assert EngineStore.of(bundle).folder == bundle.folder / "engines"
    assert EngineStore.of(bundle, tmp_path).folder == tmp_path


def test_a_first_build_logs_no_warning(store: EngineStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    store.find_or_build(TUNED, Builder(), quiet)
    assert not caplog.records
