from contextlib import closing

import torch
from zfserve_bench.compute.peaks import CpuPeaks


def test_the_cpu_has_peaks_in_every_arithmetic() -> None:
    before = torch.get_num_threads()
    with closing(CpuPeaks(threads=1)) as peaks:
        found = [peaks.flops_per_s("fp32", 0), peaks.flops_per_s("int8", 0), peaks.bytes_per_s(0)]
        if torch.cpu.get_capabilities().get("avx512_bf16"):  # elsewhere it takes seconds
            found.append(peaks.flops_per_s("bf16", 0))
    assert all(0 < value < float("inf") for value in found)
    assert torch.get_num_threads() == before
