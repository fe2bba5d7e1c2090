from collections.abc import Callable

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import jpeg_file
from zfserve_runtime.bundle import Bundle

ColourBundle = Callable[..., Bundle]
ConfigOf = Callable[[Bundle], BenchmarkConfig]


def test_the_jpeg_has_the_size_asked_for(config_of: ConfigOf, colour_bundle: ColourBundle) -> None:
    (photo, _) = config_of(colour_bundle()).photos
    smaller, larger = jpeg_file(photo, 50, 40, 50), jpeg_file(photo, 50, 40, 95)
    assert smaller[:3] == larger[:3] == b"\xff\xd8\xff"
    assert len(smaller) < len(larger)
