import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fakes.tiny_networks import tiny_residual
from zfserve_export.sources import user_module
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.module_source import BuiltModule
from zfserve_export.sources.source import Source, SourceOptions
from zfserve_export.sources.user_module import open_user_module

CODE = """
from fakes.tiny_networks import tiny_residual

constant = 3

def build():
    return tiny_residual()

def nothing():
    return None

def broken():
    text = "a"
    return text.missing

def leaves():
    raise SystemExit("bye")

class Strange(BaseException):
    pass

def strange():
    raise Strange("odd")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Returns the current folder, which holds the user's code in `my_networks/nets.py`."""
    (tmp_path / "my_networks").mkdir()
    (tmp_path / "my_networks" / "nets.py").write_text(CODE)
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_absent\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path, "the current folder does not stay on the path"
    for name in ("my_networks", "my_networks.nets", "needs_more"):
        sys.modules.pop(name, None)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[BuiltModule]:
    """Collects what the function builds, instead of exporting it, which takes seconds."""
    found: list[BuiltModule] = []

    def keep(module: BuiltModule, options: SourceOptions) -> Source:
        found.append(module)
        raise SourceError("not exported in this test")

    monkeypatch.setattr(user_module, "open_module", keep)
    return found


def test_a_function_of_the_current_folder_builds_the_network(folder: Path, built: list[BuiltModule]) -> None:
    weights = tiny_residual().state_dict()
    torch.save({name: value + 1 for name, value in weights.items()}, "weights.pth")
    for options, shift in ((SourceOptions(), 0), (SourceOptions(weights=Path("weights.pth")), 1)):
        with pytest.raises(SourceError, match="not exported"):
            open_user_module("my_networks.nets:build", options)
        assert torch.equal(built[-1].module.fc.bias, weights["fc.bias"] + shift)  # type: ignore[union-attr,arg-type]
        assert (built[-1].name, built[-1].facts) == ("nets", {}), "the name build says nothing"
    assert built[0].notes == [
        "no --weights: my_networks.nets:build is exported with the weights that the function gave it"
    ]
    assert built[1].notes == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("my_networks.nets:missing", "my_networks.nets has no function missing; name one that returns an nn.Module"),
        ("my_networks.nets:constant", "my_networks.nets has no function constant"),
        ("my_networks.nets:nothing", "my_networks.nets:nothing returned NoneType and no nn.Module"),
        (
            "my_networks.nets:broken",
            "nets:broken failed in nets.py, line 14: AttributeError: 'str' object has no attribute 'missing'",
        ),
        ("my_networks.nets:leaves", "failed in nets.py, line 17: SystemExit: bye; mend the function"),
        ("my_networks.nets:strange", "failed in nets.py, line 23: Strange: odd; mend the function"),
        ("my_nets:build", "there is no module my_nets; run zfserve in the folder that holds it"),
        ("my_networks.net:build", "there is no module my_networks.net; run zfserve in the folder that holds it"),
        ("needs_more:build", "needs_more:build: there is no module a_package_that_is_absent"),
        (
            "my_networks/nets.py:build",
            "nets.py:build names a file; name the module: my_networks.nets:build",
        ),
    ],
)
def test_code_that_builds_no_network_is_one_sentence(folder: Path, text: str, sentence: str) -> None:
    with pytest.raises(SourceError) as raised:
        open_user_module(text, SourceOptions())
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
