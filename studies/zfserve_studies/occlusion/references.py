"""Finds a map's projections from other photos in an atlas, which `zfserve atlas` makes."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from PIL import UnidentifiedImageError
from zfserve.occlusion import OcclusionPlan
from zfserve.results import ModelIdentity

from zfserve_studies.occlusion.study import Reference, picture
from zfserve_studies.run_folder import CannotContinue

ATLAS_FILE = "atlas.json"
"""The file of an atlas that names its pictures. They lie below the same folder."""

REFERENCES = 9


@dataclass(frozen=True)
class AtlasReferences:
    """Finds the projections of a map from the photos of one atlas.

    Attributes:
        folder: the folder of the atlas.
        layer: the layer of the atlas.
        maps: the photos of each map, the strongest first, as `atlas.json` describes them.
    """

    folder: Path
    layer: str
    maps: dict[int, list[dict[str, Any]]]

    @classmethod
    def read(cls, folder: Path, model: ModelIdentity) -> Self:
        """Opens an atlas.

        Args:
            folder: the folder of the atlas.
            model: the model of the study. The atlas must show the same weights.

        Raises:
            CannotContinue: the folder holds no atlas, or one of other weights.
        """
        file = folder / ATLAS_FILE
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            name, fingerprint = document["model"]["name"], document["model"]["fingerprint"]
            layer, maps = document["layer"], {each["map"]: each["photos"] for each in document["maps"]}
        except OSError as error:
            raise CannotContinue(f"{file} cannot be read: {error.strerror}; name the folder of an atlas") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CannotContinue(f"{file} is damaged, or of another release; make the atlas again") from error
        if fingerprint != model.fingerprint:
            raise CannotContinue(
                f"the atlas in {folder} has other weights, of {name}, and the study asks {model.name} {model.version}; "
                "name an atlas of that model"
            )
        return cls(folder, layer, maps)

    def __call__(self, photo: Path, plan: OcclusionPlan) -> tuple[Reference, ...]:
        """Returns the projections of the plan's map from other photos than this one, the strongest first, at most nine.

        There are none if the atlas has another layer, or not this map, or was made without projections.

        Raises:
            CannotContinue: a picture of the atlas is missing or damaged.
        """
        photos = self.maps.get(plan.map, []) if plan.map is not None and plan.layer == self.layer else []
        own = hashlib.sha256(photo.read_bytes()).hexdigest()
        others = [each for each in photos if each.get("projection") and each.get("sha256") != own]
        return tuple(self._reference(each) for each in others[:REFERENCES])

    def _reference(self, photo: dict[str, Any]) -> Reference:
        file = self.folder / str(photo["projection"])
        try:
            return Reference(Path(str(photo["photo"])).name, float(photo["activation"]), picture(file.read_bytes()))
        except (OSError, UnidentifiedImageError, ValueError, KeyError, SyntaxError) as error:
            raise CannotContinue(f"{file} is missing or damaged; make the atlas again") from error
