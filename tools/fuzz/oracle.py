"""Decides whether the decoders treated a file as they must. The fuzzer's process and the tests of decoding call it."""

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from zfserve_engines.images.codec import silence_decoders
from zfserve_engines.images.input_image import ImageLimits, decode_image
from zfserve_runtime.bundle import InputSpec
from zfserve_runtime.errors import ImageTooLarge, ImageUndecodable, InvalidInput

from tools.fuzz.mutations import mutate

SIDE = 32
"""The side of the decoded image in pixels. It is small, because the final resize is not what is tested."""

SPEC = InputSpec(height=SIDE, width=SIDE, resize="squash", shorter_side=SIDE, mean=(0, 0, 0), std=(1, 1, 1))
LIMITS = ImageLimits(max_bytes=1024 * 1024, max_pixels=2_000_000)
"""The pixel limit is 1/25 of the service's default, so that excessive time and memory stand out."""

MAX_CPU_S = 3.0
MAX_MEMORY_BYTES = 96 * 1024 * 1024
"""The largest additional memory for one file. Pillow needs 4 bytes for each pixel (up to LIMITS.max_pixels) for each of
its pictures, and a conversion holds up to four of them. The codecs need memory too."""

OUTCOMES = ("decoded", ImageUndecodable.reason, ImageTooLarge.reason)
"""The outcomes that are not faults."""


def decode_all(corpus: Sequence[bytes], seed: int, indices: range) -> None:
    """Decodes one file after the other and prints a line of JSON for each: its index and its outcome."""
    silence_decoders()  # as the service does
    judge(corpus[0])  # triggers the lazy imports
    # An allocation far beyond the bound fails at once, even if its pages are never touched.
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (address_space + 2 * MAX_MEMORY_BYTES,) * 2)
    for index in indices:
        outcome = judge(mutate(corpus, seed, index))
        sys.stdout.write(json.dumps([index, outcome]) + "\n")
        sys.stdout.flush()


def judge(data: bytes) -> str:
    """Decodes `data`. Returns one of OUTCOMES, or a description of the fault."""
    before_bytes, began_s = _reset_peak_memory(), time.process_time()
    try:
        image = decode_image(data, SPEC, LIMITS)
        pixels = image.pixels
        well_formed = pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
        sound = well_formed and image.source_width * image.source_height <= LIMITS.max_pixels
        outcome = "decoded" if sound else f"pixels {pixels.dtype} {pixels.shape} of {image.source_width} columns"
    except InvalidInput as error:
        outcome = error.reason
        if isinstance(error.__cause__, MemoryError):
            outcome = "a decoder tried to allocate more memory than the bound"
        elif error.field != "image.encoded" or error.reason not in OUTCOMES:
            outcome = f"{type(error).__name__} names {error.field}"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    spent_s, grown_bytes = time.process_time() - began_s, _peak_memory() - before_bytes
    if spent_s > MAX_CPU_S:
        return f"{spent_s:.1f} s"
    if grown_bytes > MAX_MEMORY_BYTES:
        return f"{grown_bytes / 2**20:.0f} MB"
    return outcome


def _reset_peak_memory() -> int:
    """Resets the kernel's peak counter and returns the new peak in bytes. Source: proc_pid_clear_refs(5)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_memory()


def _peak_memory() -> int:
    """Returns the peak resident memory in bytes since the last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
