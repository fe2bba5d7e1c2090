"""`zfserve export` turns a network into a bundle that can be served.

This module has the arguments and checks every path. It imports nothing heavy, so a wrong path is answered at once.
`export_run` does the work.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from zfserve_export.source_arguments import add_source_arguments, require_source_files
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.source_path import CHOICES, require_source

EXAMPLES = """examples:
  zfserve export resnet50.onnx --preprocessing imagenet-torch --labels imagenet
  zfserve export pytorchcv:resnet18 --weights resnet18.pth
  zfserve export timm:resnet50.a1_in1k --pretrained
  zfserve export mine:build --weights mine.pth --size 64x64 --preprocessing imagenet-torch --labels labels.txt"""

DEFAULT_WEIGHTS = Path("weights/zfnet-imagenette.safetensors")
DEFAULT_PHOTOS = Path("samples")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "zfserve export [SOURCE] [OPTIONS]"
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        default=str(DEFAULT_WEIGHTS),
        help=f"{CHOICES} (default: {DEFAULT_WEIGHTS})",
    )
    add_source_arguments(parser)
    files = parser.add_argument_group("the bundle")
    files.add_argument("--output", type=Path, default=Path("models"), help="folder of all models (default: models)")
    files.add_argument("--name", help="name of the model (default: that of the network or the file)")
    files.add_argument("--version", help="version of the model (default: the next whole number)")
    files.add_argument(
        "--fp16",
        action=argparse.BooleanOptionalAction,
        help="also write a float16 file for GPUs (default: where float16 can hold the network)",
    )
    files.add_argument(
        "--int8",
        action=argparse.BooleanOptionalAction,
        help="also write INT8 files, one for CPUs and one for GPUs (default: if --calibration is given)",
    )
    files.add_argument(
        "--upgrade",
        type=Path,
        metavar="BUNDLE",
        help="rewrite a bundle of an earlier release as the next version of its model, instead of exporting a source",
    )
    _add_measuring_arguments(parser.add_argument_group("measuring"))


def _add_measuring_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--calibration", type=Path, metavar="DIR", help="folder of some hundred photos to calibrate INT8 on"
    )
    group.add_argument(
        "--validation", type=Path, metavar="DIR", help="folder with <class id>/ or val/<class id>/, to measure accuracy"
    )
    group.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help=f"folder of more photos for parity and golden inputs (default: {DEFAULT_PHOTOS}, if it exists)",
    )
    group.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference between fp32 and the network in a probability (default: 1e-4)",
    )


def run(arguments: argparse.Namespace) -> int:
    messages = Console(stderr=True)
    if arguments.upgrade is not None:
        if not _alone(arguments):
            messages.print("[red]error:[/] --upgrade rewrites a bundle as it is; give no source and no other option")
            return 2
        from zfserve_export.export_run import run_upgrade  # imports torch, which takes seconds

        return run_upgrade(arguments.upgrade, messages)
    try:
        require_paths(arguments)
    except SourceError as error:
        messages.print("[red]error:[/]", escape(str(error)), highlight=False, soft_wrap=True)
        return 2
    from zfserve_export.export_run import run_export  # imports torch, which takes seconds

    return run_export(arguments, messages)


def _alone(arguments: argparse.Namespace) -> bool:
    """Returns True if --upgrade is the only argument."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given, defaults = vars(arguments), vars(parser.parse_args([]))
    return all(given[name] == value for name, value in defaults.items() if name != "upgrade")


def require_paths(arguments: argparse.Namespace) -> None:
    """Checks that everything exists that the arguments name.

    Raises:
        SourceError: something does not exist, or is of a kind that cannot be exported.
    """
    if Path(arguments.source) == DEFAULT_WEIGHTS and not DEFAULT_WEIGHTS.is_file():
        raise SourceError(
            f"{DEFAULT_WEIGHTS} does not exist; run this in a checkout of zfserve, or name a source: {CHOICES}"
        )
    require_source(arguments.source)
    require_source_files(arguments)
    for folder in (arguments.calibration, arguments.validation, arguments.photos):
        if folder is not None and not folder.is_dir():
            raise SourceError(f"there is no folder {folder}; give one that holds photos")
