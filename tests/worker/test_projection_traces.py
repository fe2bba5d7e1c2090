"""Tests the spans that the worker adds to a trace, with the real deconvnet and its real thread."""

import asyncio
from collections.abc import Callable

import grpc
from fakes.collector import Collector
from zfserve_protos.worker.v1 import worker_pb2, worker_pb2_grpc
from zfserve_runtime.bundle import Bundle
from zfserve_runtime.grpc.shutdown import StopRequest
from zfserve_worker.app import serve
from zfserve_worker.config import WorkerConfig

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PROJECT, EXPLAIN = "zfserve.worker.v1.WorkerService/Project", "zfserve.worker.v1.WorkerService/Explain"


async def test_the_steps_of_a_projection_are_the_only_spans_and_belong_to_the_trace_of_the_server(
    bundle: Bundle,
    request_for: Callable[..., worker_pb2.ProjectRequest],
    explain_request_for: Callable[..., worker_pb2.ExplainRequest],
) -> None:
    collector = Collector()
    with collector.listening() as endpoint:
        config = WorkerConfig(model=(bundle.folder,), listen="localhost:0", threads=1, otlp_endpoint=endpoint)
        stop, ready = StopRequest(), asyncio.get_running_loop().create_future()
        serving = asyncio.ensure_future(serve(config, stop, ready))
        await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
        async with grpc.aio.insecure_channel(ready.result()) as channel:
            project = worker_pb2_grpc.WorkerServiceStub(channel).Project
            metadata = (("traceparent", f"00-{TRACE}-{CALLER}-01"), ("x-request-id", "r1"))
            for sent in (metadata, metadata, ()):  # A server that does not trace a request sends no trace.
                assert len([answer async for answer in project(request_for(strongest=2), metadata=sent)]) == 2
            await worker_pb2_grpc.WorkerServiceStub(channel).Explain(explain_request_for(), metadata=metadata)
        stop.ask("the test is over")
        await serving

    first, second = collector.named(PROJECT)
    steps = ["projection", "render", "projection", "render"]
    assert collector.children(first) == ["forward pass", *steps]
    assert collector.children(second) == steps, "the forward pass came from the cache"
    assert collector.children(collector.only(EXPLAIN)) == ["attribution", "render"]
    assert {(span.trace, span.service) for span in collector.spans} == {(TRACE, "zfserve-worker")}
    assert {call.parent for call in (first, second)} == {CALLER}
    about = {"zfserve.request.id": "r1", "zfserve.model.name": "tiny", "zfserve.model.version": "1"}
    assert all(about.items() <= span.attributes.items() for span in collector.spans)
    assert {span.attributes["zfserve.layer"] for span in collector.named("render")} == {"stage2"}
    maps = [span.attributes["zfserve.map"] for span in collector.spans if span.parent == second.id]
    assert len(set(maps)) == 2
