"""Measures the peaks of a machine: FLOP/s of a large matrix product, and bytes/s of a large copy.

The benchmark `engines` measures them in the same rounds as the engines that it compares with them.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, Protocol, TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch
from zfserve_runtime.bundle import Precision

from zfserve_bench.timing import times_per_s

COPIED_BYTES = 2**28
"""The size of the copy. It exceeds the caches."""

Arithmetic: TypeAlias = Precision | Literal["bf16"]


class Peaks(Protocol):
    """Measures the peaks of the processor that engines run on."""

    def flops_per_s(self, arithmetic: Arithmetic, seconds: float) -> float:
        """Returns the multiplications and additions per second of a large product, after about `seconds`."""

    def bytes_per_s(self, seconds: float) -> float:
        """Returns the bytes read and written per second by a large copy, after about `seconds`."""

    def close(self) -> None: ...


class CpuPeaks:
    """Measures matrix products and copies on `threads` threads of the CPU.

    The products are ONNX Runtime's, which its engine uses too. Those in bf16 are PyTorch's, because ONNX Runtime has
    none. fp16 is computed in fp32 on a CPU. The copy is numpy's. The best size of a matrix depends on the caches,
    so the fastest of three sizes counts.
    """

    SIDES = (256, 512, 1024)

    def __init__(self, threads: int) -> None:
        self._threads = threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._pool = ThreadPoolExecutor(threads)
        source = np.ones(COPIED_BYTES, np.uint8)
        self._parts = list(
            zip(np.array_split(source, threads), np.array_split(np.zeros_like(source), threads), strict=True)
        )
        self._products = {
            eight_bits: {side: _product(side, eight_bits, options) for side in self.SIDES}
            for eight_bits in (False, True)
        }

    def flops_per_s(self, arithmetic: Arithmetic, seconds: float) -> float:
        if arithmetic == "bf16":
            products = {side: _bf16_product(side) for side in self.SIDES}
        else:
            products = self._products[arithmetic.startswith("int8")]
        share = seconds / len(products)
        with torch_threads(self._threads):
            return max(2 * side**3 * times_per_s(product, share) for side, product in products.items())

    def bytes_per_s(self, seconds: float) -> float:
        def copy() -> None:
            for done in [self._pool.submit(np.copyto, target, source) for source, target in self._parts]:
                done.result()

        return 2 * COPIED_BYTES * times_per_s(copy, seconds)

    def close(self) -> None:
        self._pool.shutdown()


class GpuPeaks:
    """Measures PyTorch's matrix products (cuBLAS) and its copy within the memory of the GPU. Needs a GPU."""

    SIDE = 8192

    def __init__(self) -> None:
        self._copied = [torch.ones(COPIED_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2)]
        self._factors = {
            precision: torch.ones(self.SIDE, self.SIDE, dtype=dtype, device="cuda")
            for precision, dtype in (
                ("fp32", torch.float32),
                ("fp16", torch.float16),
                ("int8", torch.int8),
                ("int8-symmetric", torch.int8),
            )
        }

    def flops_per_s(self, arithmetic: Arithmetic, seconds: float) -> float:
        factor = self._factors[arithmetic]
        multiply = torch._int_mm if factor.dtype == torch.int8 else torch.mm

        def product() -> None:
            multiply(factor, factor)
            torch.cuda.synchronize()

        return 2 * self.SIDE**3 * times_per_s(product, seconds)

    def bytes_per_s(self, seconds: float) -> float:
        source, target = self._copied

        def copy() -> None:
            target.copy_(source)
            torch.cuda.synchronize()

        return 2 * COPIED_BYTES * times_per_s(copy, seconds)

    def close(self) -> None:
        self._copied.clear()
        self._factors.clear()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Lets PyTorch use `count` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bf16_product(side: int) -> Callable[[], object]:
    factor = torch.ones(side, side, dtype=torch.bfloat16)
    return lambda: torch.mm(factor, factor)


def _product(side: int, eight_bits: bool, options: onnxruntime.SessionOptions) -> Callable[[], object]:
    """Returns a product of square matrices. The second is constant, like weights."""
    helper, types = onnx.helper, onnx.TensorProto
    left, right, product = (types.UINT8, np.int8, types.INT32) if eight_bits else (types.FLOAT, np.float32, types.FLOAT)
    weights = onnx.numpy_helper.from_array(np.ones((side, side), right), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if eight_bits else "MatMul", ["values", "weights"], ["product"])],
        "product",
        [helper.make_tensor_value_info("values", left, [side, side])],
        [helper.make_tensor_value_info("product", product, [side, side])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = np.ones((side, side), helper.tensor_dtype_to_np_dtype(left))
    return lambda: session.run(None, {"values": values})
