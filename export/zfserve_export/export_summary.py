"""This module prints what an export wrote, and finds what a user should know before serving it.

`export_run` calls it.
"""

from collections import Counter

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from zfserve_runtime.bundle import Bundle, Manifest

MOST_TOP1_LOST = 0.01
LEAST_AGREEMENT = 0.95


def print_summary(console: Console, bundle: Bundle, seconds: float) -> None:
    """Prints what the network is, and one row for each graph of the bundle, with its size, parity and accuracy."""
    manifest = bundle.manifest
    accuracy = {entry.precision: entry for entry in manifest.accuracy}
    table = Table(
        title=f"{manifest.name} {manifest.version}", title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    table.add_column("precision", no_wrap=True)
    for heading in ("MB", "top-1", "top-5", "parity on", "off by", "same class"):
        table.add_column(heading, justify="right")
    for precision in manifest.artefacts:
        file, score = bundle.artefact(precision), accuracy.get(precision)
        parity = [entry for entry in manifest.parity if entry.precision == precision]
        table.add_row(
            precision,
            f"{file.stat().st_size / 1e6:.1f}",
            f"{score.top1:.2%}" if score else "-",
            f"{score.top5:.2%}" if score else "-",
            "\n".join(f"{entry.count} {entry.inputs}" for entry in parity),
            "\n".join(f"{entry.max_difference:.1e}" for entry in parity),
            "\n".join(f"{entry.top1_agreement:.1%}" for entry in parity),
        )
    console.print(table)
    for line in describe_network(manifest):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"[green]wrote[/] {bundle.folder} in {seconds:.0f} s", highlight=False, soft_wrap=True)


def describe_network(manifest: Manifest) -> list[str]:
    """Returns the lines that say what was exported, and what can be asked of it."""
    return [
        f"network      {manifest.source or manifest.architecture}, fingerprint {manifest.fingerprint[:16]}…",
        f"photos       {_describe_input(manifest)}",
        f"classes      {_describe_classes(manifest)}",
        f"projections  {_describe_projections(manifest)}",
        *([f"explanations {manifest.attribution_obstacle}"] if manifest.attribution_obstacle else []),
        *([f"batches      of {manifest.fixed_batch_size} only"] if manifest.fixed_batch_size else []),
    ]


def _describe_input(manifest: Manifest) -> str:
    spec = manifest.input
    rule = "squashed" if spec.resize == "squash" else f"shorter side to {spec.shorter_side}, centre cropped"
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (spec.mean, spec.std))
    return f"{spec.height} x {spec.width}, {rule}, {spec.interpolation}, minus ({mean}), over ({std})"


def _describe_classes(manifest: Manifest) -> str:
    labels = [entry.label for entry in manifest.classes]
    shown = f"{', '.join(labels[:2])} to {labels[-1]}" if len(labels) > 3 else ", ".join(labels)
    return f"{len(labels)}: {shown}"


def _describe_projections(manifest: Manifest) -> str:
    if not manifest.layers:
        return f"none: {manifest.projection_obstacle}" if manifest.projection_obstacle else "none"
    stages = Counter(layer.stage or "other" for layer in manifest.layers)
    rule = "extended" if any(layer.rule == "extended" for layer in manifest.layers) else "paper"
    counts = ", ".join(f"{stage} {count}" for stage, count in stages.items())
    beyond = f"; further up, {manifest.projection_obstacle}" if manifest.projection_obstacle else ""
    number = len(manifest.layers)
    return f"by the {rule} rule from {number} layer{'' if number == 1 else 's'} ({counts}){beyond}"


def find_faults(bundle: Bundle) -> list[str]:
    """Returns one sentence for each INT8 file that differs too much from the network."""
    top1 = {entry.precision: entry.top1 for entry in bundle.manifest.accuracy}
    eight_bits = [precision for precision in bundle.manifest.artefacts if precision.startswith("int8")]
    faults = [
        f"{entry.precision} gives another top class than the network for {1 - entry.top1_agreement:.0%} of "
        f"{entry.count} photos; measure its accuracy with --validation before serving it"
        for entry in bundle.manifest.parity
        if entry.precision in eight_bits and entry.inputs == "photos" and entry.top1_agreement < LEAST_AGREEMENT
        if entry.precision not in top1  # a measured accuracy says more than this agreement
    ]
    faults += [
        f"{precision.upper()} LOSES {(top1['fp32'] - top1[precision]) * 100:.1f} POINTS OF TOP-1 "
        f"({top1['fp32']:.1%} to {top1[precision]:.1%}); serve fp32, or calibrate on more photos that resemble "
        "those you will classify"
        for precision in eight_bits
        if precision in top1 and top1["fp32"] - top1[precision] > MOST_TOP1_LOST
    ]
    return faults
