"""`zfserve atlas` shows the photos that excite each map of a layer most (figures 2 and 6 of the paper).

`zfserve atlas merge` makes one atlas of shards, which several processes or machines have read.
"""

import argparse
import re
from pathlib import Path

from zfserve.client import Client
from zfserve_cli.exit_statuses import FAILED, UNUSABLE
from zfserve_cli.picture_files import NotSaved
from zfserve_cli.service_call import call_service, print_error

from zfserve_studies.atlas.atlas_run import AtlasOptions, merge_atlas, run_atlas
from zfserve_studies.run_folder import CannotContinue
from zfserve_studies.study_arguments import add_service_arguments

CLASS_MAPS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_common_arguments(parser)
    parser.add_argument(
        "--layer", default="last", help="layer, or its stage (default: the last stage, as in `zfserve project`)"
    )
    parser.add_argument("--maps", metavar="M", help="maps, such as 0-15,40 (default: all maps of the layer)")
    parser.add_argument(
        "--for-class",
        metavar="NAME",
        help="rank photos by what a map adds to the score of this class, given by its id or label, and not by "
        "activation; this needs a worker, and is much slower",
    )
    parser.add_argument(
        "--class-maps",
        type=int,
        default=CLASS_MAPS,
        metavar="N",
        help="with --for-class: the maps of each photo that enter, those that add most (default: %(default)s)",
    )
    parser.add_argument(
        "--shard",
        type=shard_of,
        metavar="I/N",
        help="read only shard I of N, from 0/N to (N-1)/N; `zfserve atlas merge` makes the pictures",
    )
    add_service_arguments(parser)
    actions = parser.add_subparsers(dest="action", metavar="merge")
    merge = actions.add_parser("merge", help="make one atlas of all shards", description="Makes one atlas of shards.")
    merge.add_argument("shards", nargs="+", type=Path, metavar="DIR", help="folders of all shards, in any order")
    _add_common_arguments(merge)
    add_service_arguments(merge)


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder with photos, at any depth")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the atlas; the same command continues it")
    parser.add_argument("--no-patches", action="store_true", help="show projections without the parts of the photos")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights that `zfserve train` wrote; the filters of the first convolution are drawn from them",
    )
    parser.add_argument("--json", action="store_true", help="print atlas.json, for a shard its state")


def shard_of(text: str) -> tuple[int, int]:
    """Parses a shard, such as "0/4".

    Raises:
        ArgumentTypeError: the text is no shard.
    """
    matched = re.fullmatch(r"(\d+)/(\d+)", text)
    if not matched or not int(matched[1]) < int(matched[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N-1")
    return int(matched[1]), int(matched[2])


def run(arguments: argparse.Namespace) -> int:
    for flag, value in (("--images", arguments.images), ("--output", arguments.output)):
        if value is None:
            print_error(f"give {flag} DIR; `zfserve atlas --help` has all options")
            return UNUSABLE
    if not arguments.images.is_dir():
        print_error(f"{arguments.images} is not a folder; name the folder of the photos with --images")
        return UNUSABLE
    return call_service(arguments, lambda client: _run(client, arguments))


def _run(client: Client, arguments: argparse.Namespace) -> int:
    options = AtlasOptions(
        arguments.images,
        arguments.output,
        arguments.model,
        not arguments.no_patches,
        arguments.weights,
        arguments.json,
        arguments.timeout,
    )
    try:
        if arguments.action == "merge":
            return merge_atlas(client, options, arguments.shards)
        return run_atlas(
            client,
            options,
            arguments.layer,
            arguments.maps,
            (arguments.for_class, arguments.class_maps),
            arguments.shard,
        )
    except CannotContinue as error:
        print_error(str(error))
        return UNUSABLE
    except NotSaved as error:
        print_error(str(error))
        return FAILED
    except OSError as error:
        print_error(f"{error.filename or arguments.output} cannot be used: {error.strerror or error}")
        return FAILED
