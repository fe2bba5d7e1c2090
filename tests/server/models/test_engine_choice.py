"""Tests the order in which engines are tried, and the reasons for those that are not taken."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fakes.serving import MANIFEST, FakeEngine
from zfserve_engines.catalogue import ENGINE_KINDS
from zfserve_engines.contract import Engine, EngineInfo, EngineName, EngineUnavailable
from zfserve_engines.golden import Golden, write_golden
from zfserve_engines.kind import EngineKind
from zfserve_engines.opening import EngineOptions, Phase, Report, Step
from zfserve_engines.openvino.engine import skip_reason
from zfserve_runtime.bundle import AccuracyEntry, Artefact, Bundle, BundleError, Manifest, Precision
from zfserve_runtime.errors import EngineFailed, EngineLost
from zfserve_server.models.engine_choice import EngineChoice, NotTaken, choose_engine, choose_precision


@pytest.fixture
def options(tmp_path: Path) -> EngineOptions:
    """Returns options for a bundle whose golden outputs are those of FakeEngine."""
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    write_golden(Golden(pixels, {"fp32": FakeEngine().run(pixels).probabilities}), tmp_path)
    return EngineOptions(Bundle(tmp_path, MANIFEST), 4, threads=1)


@dataclass
class Openers:
    """Provides an opener for every kind of engine. By default each raises EngineUnavailable.

    Attributes:
        engines: the engines that can be opened.
        failures: the errors that openers raise, by kind.
        tried: the kinds that were tried, in order.
    """

    engines: dict[EngineName, list[FakeEngine]] = field(default_factory=dict)
    failures: dict[EngineName, BaseException] = field(default_factory=dict)
    tried: list[EngineName] = field(default_factory=list)

    def opener(self, name: EngineName) -> Callable[[EngineOptions, Precision, Report], list[Engine]]:
        def open_engines(options: EngineOptions, precision: Precision, report: Report) -> list[Engine]:
            self.tried.append(name)
            if name not in self.engines:
                raise self.failures.get(name, EngineUnavailable(f"no {name} here"))
            report(Step(name, Phase.LOADING))
            return list[Engine](self.engines[name])

        return open_engines

    def choose(
        self,
        options: EngineOptions,
        wanted: EngineName | None = None,
        report: Report = lambda step: None,
        vnni: bool = False,
    ) -> EngineChoice:
        kinds = self.kinds()
        worthwhile = partial(skip_reason, cpu_has_int8=lambda: vnni)
        kinds["openvino"] = replace(kinds["openvino"], skip_reason=worthwhile)
        return choose_engine(wanted or "auto", "auto", options, report, kinds)

    def kinds(self) -> dict[EngineName, EngineKind]:
        """Returns the records of all kinds, with these openers in place of the real ones."""
        return {name: replace(kind, open=self.opener(name)) for name, kind in ENGINE_KINDS.items()}


def wrong_engine() -> FakeEngine:
    """Returns an engine whose outputs differ from the golden outputs."""
    engine = FakeEngine()
    engine.info = EngineInfo("fake", "Wrong", "fp32", 4, 1)
    answer = engine.run
    engine.run = lambda pixels: answer(pixels + np.uint8(1))  # type: ignore[method-assign]
    return engine


def test_auto_takes_the_first_that_can_serve_and_gives_a_reason_for_the_others(
    options: EngineOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cuda, cpu = FakeEngine(), FakeEngine()
    openers = Openers({"onnx-cuda": [cuda], "onnx-cpu": [cpu]}, {"tensorrt-rtx": BundleError("no fp16 here")})
    choice = openers.choose(options)
    assert (choice.name, choice.instances) == ("onnx-cuda", [cuda])
    assert openers.tried == ["tensorrt", "tensorrt-rtx", "onnx-tensorrt", "onnx-cuda"]
    assert choice.not_taken == (
        NotTaken("tensorrt", "no tensorrt here"),
        NotTaken("tensorrt-rtx", "no fp16 here"),
        NotTaken("onnx-tensorrt", "no onnx-tensorrt here"),
        NotTaken("openvino", "onnx-cuda comes before it and can serve"),
        NotTaken("onnx-cpu", "onnx-cuda comes before it and can serve"),
        NotTaken(
            "openvino-bf16",
            "auto leaves it out, because it rounds numbers to 8 significant bits; --engine openvino-bf16 selects it",
        ),
    )
    logged = [(record.message, vars(record)["engine"]) for record in caplog.records]
    assert logged == [
        *(("engine not taken", name) for name in ("tensorrt", "tensorrt-rtx", "onnx-tensorrt")),
        ("engine taken", "onnx-cuda"),
        *(("engine not taken", name) for name in ("openvino", "onnx-cpu", "openvino-bf16")),
    ]


def test_the_order_of_the_records_is_the_order_of_auto(options: EngineOptions) -> None:
    openers = Openers({"tensorrt": [FakeEngine()], "onnx-cpu": [FakeEngine()]})
    backwards = dict(reversed(openers.kinds().items()))
    assert choose_engine("auto", "auto", options, lambda step: None, backwards).name == "onnx-cpu"
    assert openers.tried == ["onnx-cpu"]


def test_an_engine_that_disagrees_with_the_golden_outputs_is_closed_and_the_next_one_tried(
    options: EngineOptions,
) -> None:
    good, wrong, right = FakeEngine(), wrong_engine(), FakeEngine()
    choice = Openers({"tensorrt": [good, wrong], "onnx-cpu": [right]}).choose(options)
    assert choice.instances == [right]
    assert choice.not_taken[0].engine == "tensorrt"
    assert "differs from the recorded outputs" in choice.not_taken[0].reason
    assert good.closed
    assert wrong.closed
    assert not right.closed


def test_steps_are_reported_in_order(options: EngineOptions) -> None:
    steps: list[Step] = []
    Openers({"tensorrt": [wrong_engine()], "onnx-cpu": [FakeEngine()]}).choose(options, report=steps.append)
    assert steps == [
        *(Step("tensorrt", phase) for phase in (Phase.LOADING, Phase.VERIFYING)),
        *(Step("onnx-cpu", phase) for phase in (Phase.LOADING, Phase.VERIFYING)),
    ]


def test_an_engine_wanted_by_name_is_taken_and_no_other_is_tried(options: EngineOptions) -> None:
    openers = Openers({"tensorrt": [FakeEngine()], "onnx-cpu": [FakeEngine()]})
    choice = openers.choose(options, "onnx-cpu")
    assert (choice.name, choice.not_taken, openers.tried) == ("onnx-cpu", (), ["onnx-cpu"])


def test_an_unavailable_engine_wanted_by_name_is_an_error_that_says_why(options: EngineOptions) -> None:
    openers = Openers({"onnx-cpu": [FakeEngine()]})
    with pytest.raises(EngineUnavailable, match="the engine tensorrt cannot serve: no tensorrt here"):
        openers.choose(options, "tensorrt")
    assert openers.tried == ["tensorrt"]


def test_auto_takes_openvino_for_int8_on_cpus_that_multiply_bytes(options: EngineOptions, tmp_path: Path) -> None:
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    manifest = bundle_with(int8=0.87)
    write_golden(Golden(pixels, dict.fromkeys(manifest.artefacts, FakeEngine().run(pixels).probabilities)), tmp_path)
    eight_bits = replace(options, bundle=Bundle(tmp_path, manifest))
    for where, vnni, chosen, reason in (
        (eight_bits, True, "openvino", "openvino comes before it"),
        (eight_bits, False, "onnx-cpu", "auto takes it on CPUs with VNNI only"),
        (options, True, "onnx-cpu", "auto takes it for int8 only"),
    ):
        openers = Openers({"openvino": [FakeEngine()], "onnx-cpu": [FakeEngine()]})
        choice = openers.choose(where, vnni=vnni)
        assert choice.name == chosen
        other = "openvino" if chosen == "onnx-cpu" else "onnx-cpu"
        assert reason in next(entry.reason for entry in choice.not_taken if entry.engine == other)
        assert (other in openers.tried) is False
        assert choice.reopen is not None
    asked = Openers({"openvino": [FakeEngine()]}).choose(options, "openvino")
    assert asked.name == "openvino", "an engine wanted by name is taken on any CPU"


def test_an_engine_is_not_opened_again_on_another_bundle(colour_bundle: Callable[..., Bundle]) -> None:
    bundle = colour_bundle()
    options = EngineOptions(bundle, 4, threads=1)
    choice = choose_engine("onnx-cpu", "auto", options, lambda step: None)
    assert choice.reopen is not None
    choice.reopen().close()
    golden = (bundle.folder / "golden.npz").read_bytes()
    (bundle.folder / "golden.npz").write_bytes(b"others")
    with pytest.raises(EngineUnavailable, match=r"golden\.npz .* differs from its digest"):
        choice.reopen()
    (bundle.folder / "golden.npz").write_bytes(golden)
    manifest = bundle.manifest.model_copy(update={"fingerprint": "0" * 64})
    (bundle.folder / "manifest.json").write_text(manifest.model_dump_json())
    with pytest.raises(EngineUnavailable, match="holds another bundle"):
        choice.reopen()
    choice.close()


def test_if_no_engine_can_serve_every_reason_is_given(options: EngineOptions) -> None:
    with pytest.raises(EngineUnavailable) as refused:
        Openers(failures={"onnx-cpu": EngineFailed("the CPU is tired")}).choose(options)
    for reason in ("tensorrt: no tensorrt here", "onnx-cpu: the CPU is tired", "openvino-bf16: auto leaves it out"):
        assert reason in str(refused.value)


def test_a_broken_library_does_not_disable_other_engines(
    options: EngineOptions, caplog: pytest.LogCaptureFixture
) -> None:
    openers = Openers({"onnx-cpu": [FakeEngine()]}, {"tensorrt": MemoryError("/secret")})
    choice = openers.choose(options)
    assert choice.name == "onnx-cpu"
    assert "MemoryError" in choice.not_taken[0].reason
    assert "/secret" not in choice.not_taken[0].reason
    assert any(record.exc_info for record in caplog.records)


def test_a_device_that_is_lost_ends_the_choice(options: EngineOptions) -> None:
    openers = Openers({"onnx-cpu": [FakeEngine()]}, {"tensorrt": EngineLost("the card fell off the bus")})
    with pytest.raises(EngineLost):
        openers.choose(options)


def test_a_start_that_is_cancelled_closes_what_was_opened(options: EngineOptions) -> None:
    def report(step: Step) -> None:
        if step.phase is Phase.VERIFYING:
            raise KeyboardInterrupt

    engine = FakeEngine()
    with pytest.raises(KeyboardInterrupt):
        Openers({"tensorrt": [engine]}).choose(options, report=report)
    assert engine.closed


def bundle_with(int8: float | None = None, fp16: float | None = None) -> Manifest:
    """Returns a manifest with all graphs. fp32 has a top-1 of 0.875; the others have the given figures, or none."""
    names: tuple[Precision, ...] = ("int8", "fp16", "int8-symmetric")
    artefacts = {name: Artefact(file=f"model.{name}.onnx", golden_tolerance=0.01) for name in names}
    figures: dict[Precision, float | None] = {"int8": int8, "fp16": fp16}
    accuracy = [AccuracyEntry(precision=name, count=8, top1=top1, top5=1.0) for name, top1 in figures.items() if top1]
    update = {"artefacts": {**MANIFEST.artefacts, **artefacts}, "accuracy": (*MANIFEST.accuracy, *accuracy)}
    return MANIFEST.model_copy(update=update)


@pytest.mark.parametrize(
    ("wanted", "manifest", "engine", "chosen"),
    [
        ("auto", MANIFEST, "onnx-cpu", "fp32"),
        ("auto", bundle_with(), "onnx-cpu", "fp32"),
        ("auto", bundle_with(int8=0.87, fp16=0.875), "onnx-cpu", "int8"),
        ("auto", bundle_with(int8=0.87, fp16=0.875), "onnx-cuda", "fp16"),
        ("auto", bundle_with(int8=0.87, fp16=0.875), "tensorrt", "fp16"),
        ("auto", bundle_with(int8=0.87), "openvino", "int8"),
        ("auto", bundle_with(int8=0.87), "openvino-bf16", "fp32"),
        ("auto", bundle_with(int8=0.85), "onnx-cpu", "fp32"),
        ("auto", bundle_with(int8=0.87), "tensorrt", "fp16"),
        ("auto", bundle_with(), "onnx-cuda", "fp16"),
        ("auto", MANIFEST, "onnx-cuda", "fp32"),
        ("auto", bundle_with(fp16=0.85), "tensorrt", "fp32"),
        ("int8", bundle_with(int8=0.5), "onnx-cpu", "int8"),
        ("int8", bundle_with(), "tensorrt-rtx", "int8-symmetric"),
        ("int8", bundle_with(), "onnx-tensorrt", "int8-symmetric"),
        ("fp16", bundle_with(), "onnx-cpu", "fp16"),
        ("fp32", bundle_with(int8=0.87), "onnx-cpu", "fp32"),
    ],
)
def test_precision(wanted: str, manifest: Manifest, engine: EngineName, chosen: Precision) -> None:
    assert choose_precision(wanted, manifest, ENGINE_KINDS[engine]) == chosen  # type: ignore[arg-type]
