import sys

import pytest
from zfserve_export.sources import named
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.module_source import BuiltModule
from zfserve_export.sources.opening import open_source
from zfserve_export.sources.source import SourceOptions
from zfserve_model.efficientnet_lite import PREPROCESSING
from zfserve_model.preprocessing import complete


def test_its_own_preprocessing_and_imagenets_labels_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The export to ONNX takes ten seconds, and is the same as for any module. So the test ends before it."""
    built: list[BuiltModule] = []
    monkeypatch.setattr(named, "open_module", lambda module, options: built.append(module))
    open_source("efficientnet-lite0", SourceOptions())
    assert complete(built[0].facts) == PREPROCESSING
    assert built[0].imagenet
    assert built[0].name == "efficientnet-lite0"


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(SourceError, match=r"efficientnet_lite_pytorch is not installed.*\[export\]"):
        open_source("efficientnet-lite0", SourceOptions())
