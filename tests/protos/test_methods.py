"""Tests that `methods` has the names of the .proto files, and that the names need no library."""

import subprocess
import sys

from zfserve_protos import methods
from zfserve_protos.v1 import zfserve_pb2
from zfserve_protos.worker.v1 import worker_pb2


def test_every_method_of_our_services_is_named() -> None:
    services = [zfserve_pb2.DESCRIPTOR.services_by_name["VisionService"]]
    services.append(worker_pb2.DESCRIPTOR.services_by_name["WorkerService"])
    named = {value for value in vars(methods).values() if isinstance(value, str)}
    for service in services:
        assert service.full_name in named
        assert {f"/{service.full_name}/{method.name}" for method in service.methods} <= named


def test_the_names_of_the_open_inference_protocol_exist() -> None:
    # Another process, because other clients of the protocol, in other tests, register messages of the same names.
    program = (
        "from zfserve_protos import methods\n"
        "from zfserve_protos.inference import grpc_service_pb2 as stubs\n"
        "service = stubs.DESCRIPTOR.services_by_name['GRPCInferenceService']\n"
        "names = {f'/{service.full_name}/{method.name}' for method in service.methods}\n"
        "assert service.full_name == methods.INFERENCE_SERVICE\n"
        "assert {methods.MODEL_INFER, methods.MODEL_STREAM_INFER} <= names\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_names_need_no_library() -> None:
    program = (
        "import sys\n"
        "from zfserve_protos import channel_options, limits, metadata, methods\n"
        "assert not {'grpc', 'google.protobuf', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
