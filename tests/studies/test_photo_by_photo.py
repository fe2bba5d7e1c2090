"""Tests that a photo that fails does not stop the others."""

from pathlib import Path

import grpc
from zfserve.errors import InvalidInput, Unavailable
from zfserve_studies.photo_by_photo import photo_by_photo

PHOTOS = [Path(name) for name in "abc"]


def test_a_photo_that_fails_does_not_stop_the_others() -> None:
    bad = InvalidInput("no photo", grpc.StatusCode.INVALID_ARGUMENT)

    def study(photo: Path) -> str:
        if photo.name == "b":
            raise bad
        return photo.name

    assert list(photo_by_photo(PHOTOS, study)) == [(PHOTOS[0], "a"), (PHOTOS[1], bad), (PHOTOS[2], "c")]


def test_a_server_that_stayed_away_is_not_waited_for_again() -> None:
    away = Unavailable("no server", grpc.StatusCode.UNAVAILABLE)
    asked: list[Path] = []

    def study(photo: Path) -> str:
        asked.append(photo)
        raise away

    assert [outcome for _, outcome in photo_by_photo(PHOTOS, study)] == [away, away, away]
    assert asked == PHOTOS[:1]
