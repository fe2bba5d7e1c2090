"""Benchmark `atlas`: compares the scan of `zfserve atlas` with the client's `classify_many` on the same photos.

The scan reads the strongest unit of each map of the last layer, keeps the best photos and writes its state. It makes no
projections: their number depends on the maps and not on the photos.
"""

import statistics
import time
from contextlib import closing
from itertools import count

from PIL import Image
from zfserve.client import Client
from zfserve.errors import ZfserveError
from zfserve_runtime.bundle import Precision
from zfserve_studies.atlas.question import AtlasQuestion, batches, find_layer, find_photos
from zfserve_studies.atlas.scan import Scanner
from zfserve_studies.patience import Patience
from zfserve_studies.run_folder import RunFolder

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import JPEG_QUALITY, random_images
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.reports.paired import alternate, median_ratio
from zfserve_bench.services import classifying_service

MIN_SHARE = Limit("at least", 0.8)
"""The least throughput of the scan over that of `classify_many`."""

PHOTOS, QUICK_PHOTOS = 256, 6
"""The number of photos of each measurement."""


def measure_atlas(config: BenchmarkConfig) -> Report:
    findings = tuple(_compare(config, precision) for precision in config.precisions)
    notes = (
        "The photos are JPEG files of the size of the model's input. Both sides read them from the disk, are bulk, and "
        "run on the same CPUs as the service.",
        "Dead maps, projections and pages are not part of it. Their cost does not depend on the number of photos.",
    )
    title = "Atlas: the scan of the last layer, beside classify_many on the same photos"
    return Report(title, "classify_many", "share", findings, notes, measured="zfserve atlas")


def _compare(config: BenchmarkConfig, precision: Precision) -> Finding:
    judged = config.effort.judged
    folder = config.scratch(f"atlas-{precision}")
    images = folder / "images"
    images.mkdir()
    for number, pixels in enumerate(random_images(config.bundle.manifest.input, PHOTOS if judged else QUICK_PHOTOS)):
        Image.fromarray(pixels).save(images / f"{number:04}.jpg", quality=JPEG_QUALITY)
    photos = find_photos(images)
    numbers = count()
    with (
        classifying_service(config, precision, folder) as service,
        closing(Client(service.address, priority="bulk", timeout_s=600)) as client,
    ):
        description = client.describe()
        layer = find_layer(description, "last")
        question = AtlasQuestion(description.model, layer, tuple(range(layer.channels)))
        scanner = Scanner(client, question, Patience(lambda _: None))

        def classified_per_s() -> float:
            began = time.perf_counter()
            for outcome in client.classify_many(photo.file for photo in photos):
                if isinstance(outcome, ZfserveError):
                    raise outcome
            return len(photos) / (time.perf_counter() - began)

        def scanned_per_s() -> float:
            run = RunFolder(folder / f"run{next(numbers)}")
            run.folder.mkdir()
            began = time.perf_counter()
            scanner.scan(batches(photos, lambda photo: photo.file.stat().st_size), run, lambda done, total: None)
            return len(photos) / (time.perf_counter() - began)

        scanned_per_s()  # opens the engine that reads
        baselines, scanned = alternate(classified_per_s, scanned_per_s, config.effort.rounds)
    return Finding(
        f"{precision}, {layer.name}, {len(photos)} photos",
        Quantity(statistics.median(scanned), "images/s"),
        Quantity(statistics.median(baselines), "images/s"),
        Quantity(median_ratio(baselines, scanned)),
        MIN_SHARE if judged else None,
    )
