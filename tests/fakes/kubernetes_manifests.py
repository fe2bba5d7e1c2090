"""This module reads the manifests of `deploy/`, and parses the arguments of the programs in them."""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from fakes.kserve import deployment_of
from zfserve_cli.main import COMMANDS
from zfserve_server.config import ServerConfig
from zfserve_worker.config import WorkerConfig

ROOT = Path(__file__).parent.parent.parent
OVERLAYS = sorted(path.name for path in (ROOT / "deploy" / "overlays").iterdir())

Document = dict[str, Any]


@cache
def documents(overlay: str) -> list[Document]:
    return kustomized(ROOT / "deploy" / "overlays" / overlay)


def kustomized(folder: Path) -> list[Document]:
    command = [str(Path(sys.executable).parent / "kubectl"), "kustomize", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return list(yaml.safe_load_all(built.stdout))


@cache
def deployments(overlay: str) -> list[Document]:
    """Returns the Deployments of the manifests, and the one that KServe makes."""
    made = deployment_of(documents(overlay))
    return [*of_kind(overlay, "Deployment"), *([made] if made else [])]


def of_kind(overlay: str, kind: str) -> list[Document]:
    return [document for document in documents(overlay) if document["kind"] == kind]


def pods(overlay: str) -> dict[str, Document]:
    return {one["metadata"]["name"]: one["spec"]["template"] for one in deployments(overlay)}


def containers(overlay: str) -> Iterator[tuple[Document, Document]]:
    """Yields each container with its pod."""
    for pod in pods(overlay).values():
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            yield pod, container


def arguments_of(container: Document) -> argparse.Namespace:
    """Parses the container's arguments as its program does. Fails where the program would refuse them."""
    name, *rest = container["args"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    return parser.parse_args(rest)


def server_config(container: Document) -> ServerConfig:
    return ServerConfig.read(vars(arguments_of(container)), {})


def worker_config(container: Document) -> WorkerConfig:
    return WorkerConfig.read(vars(arguments_of(container)), {})


def port_numbers(container: Document) -> set[int]:
    return {port["containerPort"] for port in container.get("ports", ())}


def programs(overlay: str, command: str) -> list[tuple[Document, Document]]:
    return [(pod, container) for pod, container in containers(overlay) if container["args"][0] == command]
