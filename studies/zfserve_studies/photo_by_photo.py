"""Does a study photo by photo. A photo that fails does not stop the others."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from zfserve.errors import Overloaded, Unavailable, ZfserveError

_Result = TypeVar("_Result")


def photo_by_photo(
    photos: Sequence[Path], study: Callable[[Path], _Result]
) -> Iterator[tuple[Path, _Result | ZfserveError]]:
    """Yields each photo with its result, or with the error that its call met.

    A server that stayed away for one photo is not waited for again. Its error then stands for all photos that follow.

    Args:
        study: does the study for one photo. It waits for a server that restarts (`Patience`).
    """
    away: ZfserveError | None = None
    for photo in photos:
        outcome: _Result | ZfserveError
        if away is not None:
            outcome = away
        else:
            try:
                outcome = study(photo)
            except ZfserveError as error:
                outcome = error
                away = error if isinstance(error, Unavailable | Overloaded) else None
        yield photo, outcome
