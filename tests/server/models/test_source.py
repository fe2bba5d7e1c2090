"""The source opens bundles on disk by the settings and by what their networks can do."""

import pytest
from conftest import ColourBundle
from zfserve_server.config import ServerConfig
from zfserve_server.models.source import models_on_disk


@pytest.mark.parametrize(
    ("fixed_batch_size", "settings", "expected"),
    [
        (0, {}, 16),
        (0, {"max_batch_size": 4}, 4),
        (0, {"max_queue": 3}, 3),  # more images are never admitted
        (1, {}, 1),
    ],
)
def test_the_largest_batch_fits_the_settings_and_the_network(
    colour_bundle: ColourBundle, fixed_batch_size: int, settings: dict[str, int], expected: int
) -> None:
    bundle = colour_bundle(fixed_batch_size=fixed_batch_size)
    config = ServerConfig.model_validate({"model": (bundle.folder,), "engine": "onnx-cpu", "threads": 1, **settings})
    source = models_on_disk(config)
    (found,) = source.scan()
    opened = source.open(found, lambda step: None)
    try:
        assert [engine.info.max_batch_size for engine in opened.choice.instances] == [expected]
    finally:
        opened.close()
