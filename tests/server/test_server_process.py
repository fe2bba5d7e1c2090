"""Tests the commands that a server proposes when it is ready."""

from fakes.versions import version
from zfserve_server.server_process import commands_to_try


def test_a_server_proposes_only_what_its_model_can_do() -> None:
    can_be_projected, cannot = version("1"), version("1", layers=())
    assert commands_to_try(can_be_projected, with_worker=True) == (
        "classify photo.jpg",
        "explain photo.jpg",
        "project photo.jpg --save out/",
    )
    assert commands_to_try(cannot, with_worker=True) == ("classify photo.jpg",)
    assert commands_to_try(can_be_projected, with_worker=False) == ("classify photo.jpg",)
