"""`python -m zfserve_cli.demo` goes from the shipped weights to a page that shows what the network saw.

`make demo` calls it in the root of the repository. It exports the weights if there is no bundle yet, starts the
service, classifies the sample photos, projects every convolution, asks a second network that knows a thousand classes,
writes everything to one folder, and stops the service. With `--address` it calls a service that is already running, as
`tools/images` does.
"""

import argparse
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from zfserve.client import Client
from zfserve.errors import ZfserveError
from zfserve_photos.files import find_photos

from zfserve_cli.demo.steps import DemoFailed, check_names, ensure_bundle, explain_photos
from zfserve_cli.exit_statuses import FAILED, INTERRUPTED, OK, UNUSABLE
from zfserve_cli.service_process import ServiceFailed, running_service

SECOND_SOURCE = "efficientnet-lite0"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m zfserve_cli.demo", description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("weights/zfnet-imagenette.safetensors"))
    parser.add_argument(
        "--model", type=Path, default=Path("models/zfnet"), help="bundle to serve; the demo exports it if it is missing"
    )
    parser.add_argument(
        "--second",
        type=Path,
        default=Path("models") / SECOND_SOURCE,
        help="bundle of the second network; the demo exports it if it is missing",
    )
    parser.add_argument("--photos", default="samples", help="file, folder or pattern")
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--address", help="address of a running service; without it, the demo starts one")
    arguments = parser.parse_args()
    console = Console()
    # A plain `kill` must stop the service as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        page = _run(arguments, console)
    except (OSError, ValueError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return UNUSABLE
    except (DemoFailed, ServiceFailed, ZfserveError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return FAILED
    except KeyboardInterrupt:
        console.print("stopped")
        return INTERRUPTED
    console.print(f"\nOpen [bold]{escape(str(page.resolve()))}[/] in a browser.", soft_wrap=True, highlight=False)
    return OK


def _run(arguments: argparse.Namespace, console: Console) -> Path:
    """Runs the demo, and returns the page."""
    photos = find_photos([arguments.photos])
    check_names(photos, arguments.output)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if (address := arguments.address) is None:
            ensure_bundle(arguments.model, str(arguments.weights), console)
            ensure_bundle(arguments.second, SECOND_SOURCE, console)
            console.print("starting the service, which loads both models and checks them")
            flags = ("--model", str(arguments.second), "--default-model", arguments.model.name)
            address = stack.enter_context(running_service(arguments.model, arguments.output, *flags)).address
            console.print("[green]✓[/] service ready")
        client = stack.enter_context(Client(address))
        second = arguments.second.name
        served = second in {model.name for model in client.list_models()}
        return explain_photos(client, photos, arguments.output, console, second if served else None)


if __name__ == "__main__":
    sys.exit(main())
