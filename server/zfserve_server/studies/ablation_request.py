"""Validates `Ablate` requests, and fills in what they leave open. `study_service` calls it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.errors import InvalidInput, OutOfRange
from zfserve_runtime.projection_validation import check_attribution, find_class

from zfserve_server.studies.layers import ReadLayer, find_layer
from zfserve_server.studies.limits import MAX_GROUPS, check_count, check_reply

_DEFAULT_COUNT = 9
"""The number of maps if the request does not give one."""


@dataclass(frozen=True, eq=False)
class AblationSettings:
    """Holds what an `Ablate` request asks for.

    Attributes:
        groups: the maps of each group, where the request names them.
        for_class: the class that the maps must speak for, where the request asks for that. Its count is set.
        strongest: the number of maps to choose by their highest activation; 0 where the request chooses otherwise.
        values: what each map becomes, float32 (C,); None stands for its mean over its units.
    """

    layer: ReadLayer
    groups: tuple[tuple[int, ...], ...]
    for_class: pb.ClassMaps | None
    strongest: int
    values: npt.NDArray[np.float32] | None


def validate_ablate_request(request: pb.AblateRequest, manifest: Manifest) -> AblationSettings:
    """Returns what the request asks for. Refuses a request that does not fit the model, before any work is done.

    Raises:
        InvalidInput: there are no groups or too many, a group is empty, or the replacement is no replacement.
        OutOfRange: the layer has no such map, or fewer maps than the request asks for.
        NotFound: the model has no such layer or class.
        BundleOutdated: the bundle does not say where its layers are.
        Unimplemented: a node of the network is in the way of the attribution to a class.
    """
    layer = find_layer(request.layer or "last", manifest)
    groups: tuple[tuple[int, ...], ...] = ()
    for_class, strongest = None, 0
    match request.WhichOneof("maps"):
        case "groups":
            groups = _check_groups(request.groups.groups, layer)
            count = len(groups)
        case "for_class":
            check_attribution(manifest)
            find_class(request.for_class.class_name, manifest, "for_class.class_name")
            count = _check_map_count(request.for_class.count or _default(layer), layer, "for_class.count")
            for_class = pb.ClassMaps(class_name=request.for_class.class_name, count=count)
        case "strongest":
            count = strongest = _check_map_count(request.strongest, layer, "strongest")
        case _:
            count = strongest = _default(layer)
    check_reply(8 * len(manifest.classes) * count, "ask for fewer groups at once", "groups")
    return AblationSettings(layer, groups, for_class, strongest, _check_replacement(request, layer))


def _default(layer: ReadLayer) -> int:
    return min(_DEFAULT_COUNT, layer.channels)


def _check_groups(groups: Sequence[pb.MapSelection], layer: ReadLayer) -> tuple[tuple[int, ...], ...]:
    check_count(len(groups), MAX_GROUPS, "groups", "groups")
    for number, group in enumerate(groups):
        if not group.indices:
            raise InvalidInput(f"group {number} has no maps; name at least one", field="groups")
        if len(group.indices) > layer.channels:
            raise InvalidInput(
                f"group {number} has {len(group.indices):,} maps and {layer.name} has {layer.channels}; name each once",
                field="groups",
            )
        if (worst := max(group.indices)) >= layer.channels:
            raise OutOfRange(
                f"{layer.name} has the maps 0 to {layer.channels - 1}; {worst} of group {number} is not among them",
                field="groups",
            )
    return tuple(tuple(group.indices) for group in groups)


def _check_map_count(count: int, layer: ReadLayer, field: str) -> int:
    if count == 0:
        raise InvalidInput(f"ask for 1 to {min(layer.channels, MAX_GROUPS)} maps of {layer.name}", field=field)
    if count > layer.channels:
        raise OutOfRange(f"{layer.name} has {layer.channels} maps; ask for no more", field=field)
    check_count(count, MAX_GROUPS, "maps", field)
    return count


def _check_replacement(request: pb.AblateRequest, layer: ReadLayer) -> npt.NDArray[np.float32] | None:
    replacement = request.replacement or pb.ABLATION_REPLACEMENT_ZERO
    if replacement not in pb.AblationReplacement.values():
        known = ", ".join(pb.AblationReplacement.keys()[1:])
        raise InvalidInput(f"replacement {replacement} is unknown; choose one of {known}", field="replacement")
    if replacement != pb.ABLATION_REPLACEMENT_VALUES:
        if request.values:
            raise InvalidInput(
                "values belong to ABLATION_REPLACEMENT_VALUES; set replacement to it, or leave values out",
                field="values",
            )
        return np.zeros(layer.channels, np.float32) if replacement == pb.ABLATION_REPLACEMENT_ZERO else None
    values = np.array(request.values, np.float32)
    if len(values) != layer.channels:
        raise InvalidInput(
            f"{layer.name} has {layer.channels} maps and the request has {len(values):,} values; send one for each map",
            field="values",
        )
    if not np.isfinite(values).all():
        raise InvalidInput("a value is not finite; send finite numbers", field="values")
    return values
