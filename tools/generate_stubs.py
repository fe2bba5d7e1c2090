"""Generates the Python stubs of every .proto file. With --check, fails if the committed stubs are out of date."""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent.parent / "protos"


def generate(output: Path) -> None:
    """Writes `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.*` for all .proto files to `output`."""
    protos = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    includes = [f"-I{ROOT}", f"-I{files('grpc_tools') / '_proto'}"]
    # The plugins need full paths, because an environment that is not activated is not on PATH.
    plugins = [
        f"--plugin={name}={Path(sys.executable).parent / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    outputs = [f"--{kind}_out={output}" for kind in ("python", "grpc_python")]
    outputs += [f"--{kind}_out=quiet:{output}" for kind in ("mypy", "mypy_grpc")]
    if protoc.main(["protoc", *plugins, *includes, *outputs, *protos]) != 0:
        raise SystemExit("protoc failed; see its messages above")


def main() -> int:
    if sys.argv[1:] != ["--check"]:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*_pb2*.py*")}
    committed = {
        path.relative_to(ROOT): path.read_bytes()
        for path in ROOT.rglob("*_pb2*.py*")
        if "__pycache__" not in path.parts
    }
    stale = sorted(str(path) for path in fresh.keys() | committed.keys() if fresh.get(path) != committed.get(path))
    if stale:
        sys.stderr.write(f"stubs are out of date: {', '.join(stale)}; run `make protos`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
