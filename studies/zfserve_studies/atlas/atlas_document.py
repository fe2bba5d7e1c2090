"""Makes `atlas.json`, which has everything that an atlas found. `zfserve occlude --atlas` and scripts read it."""

from dataclasses import dataclass
from typing import Any

from zfserve_studies.atlas.findings import COMMON_PHOTOS, DEAD_SHARE, LEAST_PHOTOS, dead_maps, near_duplicates
from zfserve_studies.atlas.question import AtlasQuestion
from zfserve_studies.atlas.scan import ScanState
from zfserve_studies.atlas.strongest import Strongest
from zfserve_studies.atlas.tiles import Tile

ATLAS_FILE = "atlas.json"

SCHEMA = 1


@dataclass(frozen=True)
class Atlas:
    """Holds what an atlas found.

    Attributes:
        question: what it asked.
        state: the strongest units, and what was skipped.
        dead: the maps that say nothing.
        duplicates: pairs of maps that say the same, with the number of photos that they share.
        projections: True if the tiles have projections.
        patches: True if the tiles have patches.
    """

    question: AtlasQuestion
    state: ScanState
    dead: tuple[int, ...]
    duplicates: tuple[tuple[int, int, int], ...]
    projections: bool
    patches: bool

    @property
    def strongest(self) -> Strongest:
        return self.state.strongest

    @property
    def by(self) -> str:
        """Returns a phrase that says how photos are ranked."""
        return "activation" if self.question.for_class is None else f"what they add to {self.question.for_class}"

    def partners(self, index: int) -> tuple[int, ...]:
        """Returns the maps that are near-duplicates of a map."""
        return tuple(
            second if first == index else first for first, second, _ in self.duplicates if index in (first, second)
        )


def finish(question: AtlasQuestion, state: ScanState, projections: bool, patches: bool) -> Atlas:
    """Returns the atlas of a finished scan."""
    dead = dead_maps(state.strongest)
    duplicates = near_duplicates(state.strongest, state.photos)
    return Atlas(question, state, dead, duplicates, projections, patches)


def atlas_document(atlas: Atlas) -> dict[str, Any]:
    """Returns the document of `atlas.json`. Equal atlases have equal documents, whatever their shards were."""
    question, state = atlas.question, atlas.state
    dead = set(atlas.dead)
    return {
        "schema": SCHEMA,
        "model": {
            "name": question.model.name,
            "version": question.model.version,
            "fingerprint": question.model.fingerprint,
        },
        "layer": question.layer.name,
        "ranked_by": "activation" if question.for_class is None else "attribution",
        "for_class": question.for_class,
        "photos": state.photos,
        "skipped": [{"photo": name, "reason": reason} for name, reason in state.skipped],
        "computed": state.computed,
        "criteria": {
            "dead_share": DEAD_SHARE,
            "near_duplicate_photos": COMMON_PHOTOS,
            "near_duplicates_need_photos": LEAST_PHOTOS,
        },
        "dead": list(atlas.dead),
        "near_duplicates": [
            {"maps": [first, second], "common_photos": count} for first, second, count in atlas.duplicates
        ],
        "maps": [
            {"map": index, "dead": index in dead, "photos": [_photo(atlas, index, rank) for rank in range(len(units))]}
            for index in state.strongest.maps
            if (units := state.strongest.units(index)) is not None
        ],
    }


def _photo(atlas: Atlas, index: int, rank: int) -> dict[str, Any]:
    unit = atlas.strongest.units(index)[rank]
    tile = Tile(index, rank, unit)
    return {
        "photo": unit.photo,
        "sha256": unit.digest,
        "value": unit.value,
        "activation": unit.activation,
        "row": unit.row,
        "column": unit.column,
        "projection": tile.projection if atlas.projections else None,
        "patch": tile.patch if atlas.patches else None,
    }
