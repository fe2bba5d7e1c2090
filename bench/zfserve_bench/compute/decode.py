"""Benchmark `decode`: measures the CPU time of decoding and resizing a JPEG file."""

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image
from zfserve_engines.images.input_image import ImageLimits, decode_image

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import JPEG_HEIGHT, JPEG_QUALITY, JPEG_WIDTH, jpeg_files
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.reports.paired import alternate, median_ratio

MAX_CPU = Limit("at most", 2.5)
"""The largest CPU time for one file, in milliseconds of one core."""

REPEATS = 20
"""The number of times that a round decodes each photo. The CPU clock may tick in whole milliseconds."""


def measure_decode(config: BenchmarkConfig) -> Report:
    title = f"Decoding: a JPEG of {JPEG_WIDTH} x {JPEG_HEIGHT} into the network's input, CPU time of one core"
    if not config.photos:
        return Report(title, "", "", (), ("skipped: no photos; give a folder of photos with --photos",))
    spec, limits, effort = config.bundle.manifest.input, ImageLimits(), config.effort
    files = jpeg_files(config)

    def plain(file: bytes) -> object:
        with Image.open(io.BytesIO(file)) as opened:
            return np.asarray(opened.convert("RGB").resize((spec.width, spec.height), Image.Resampling.BILINEAR))

    plain_ms, decode_ms = alternate(
        lambda: _cpu_ms(plain, files),
        lambda: _cpu_ms(lambda file: decode_image(file, spec, limits), files),
        effort.rounds,
    )
    took = Quantity(statistics.median(decode_ms), "ms")
    finding = Finding(
        "decode and resize",
        took,
        Quantity(statistics.median(plain_ms), "ms"),
        took,
        MAX_CPU if effort.judged else None,
    )
    size_kb = statistics.mean(map(len, files)) / 1e3
    notes = (
        f"{len(files)} photos of {size_kb:.0f} KB on average, JPEG quality {JPEG_QUALITY}.",
        "CPU time over that of plain Pillow, which opens, converts and resizes the whole picture: "
        f"{median_ratio(plain_ms, decode_ms):.2f}.",
    )
    return Report(title, "plain Pillow", "CPU time", (finding,), notes)


def _cpu_ms(decode: Callable[[bytes], object], files: list[bytes]) -> float:
    """Returns the mean CPU time of this thread for one file, in milliseconds."""
    began = time.thread_time()
    for _ in range(REPEATS):
        for file in files:
            decode(file)
    return (time.thread_time() - began) / (REPEATS * len(files)) * 1e3
