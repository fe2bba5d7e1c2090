"""Makes the answers of the fake service to `Activations`, `Occlude`, `Ablate` and `Transform`: fixed, small numbers."""

import struct
from collections.abc import Iterator

from fakes.pictures import png
from zfserve_protos.v1 import zfserve_pb2 as pb

MODEL = pb.ModelIdentity(name="zfnet", version="3", fingerprint="ab12")
COMPUTATION = pb.Computation(precision="int8", engine="openvino")
CHURCH = pb.ClassScore(label="church", class_id="n1", index=1, probability=0.75)
TENCH = pb.ClassScore(label="tench", class_id="n0", index=0, probability=0.5)
TOPS, LEFTS = (0, 16, 20), (0, 16)
MAPS = 3
"""Each layer has this many maps. They come in two messages."""


def layer_name(asked: str) -> str:
    return {"last": "relu5", "": "relu5"}.get(asked, asked)


def activations_messages(request: pb.ActivationsRequest) -> Iterator[pb.ActivationsResponse]:
    """Yields two messages for each layer of each photo. Value i of map m of photo p is 100 p + 10 m + i."""
    height, width = {
        pb.ACTIVATION_FORM_MAPS: (2, 2),
        pb.ACTIVATION_FORM_GRID: (request.grid_height, request.grid_width),
    }.get(request.form, (1, 1))
    cells = height * width
    for photo in range(len(request.images)):
        for layer in request.layers:
            for first, count in ((0, 2), (2, 1)):
                values = [100 * photo + 10 * at + cell for at in range(first, first + count) for cell in range(cells)]
                message = pb.ActivationsResponse(
                    image=photo,
                    layer=layer_name(layer),
                    first_map=first,
                    values=pb.FloatMaps(
                        maps=count, height=height, width=width, data=struct.pack(f"<{len(values)}f", *values)
                    ),
                    computation=COMPUTATION,
                    model=MODEL,
                )
                if request.form == pb.ACTIVATION_FORM_STRONGEST:
                    message.rows.extend(range(first, first + count))
                    message.columns.extend([7] * count)
                if first == 2 and layer == request.layers[-1]:
                    message.photo_ends = True
                    message.best.CopyFrom(CHURCH)
                yield message


def occlusion_messages(request: pb.OccludeRequest) -> Iterator[pb.OccludeResponse]:
    """Yields the plan, a coarse grid of two places, and the other four places with the summary."""
    sized = not request.image.HasField("reference")
    plan = pb.OcclusionPlan(
        tops=TOPS,
        lefts=LEFTS,
        size=request.size or 12,
        for_class=pb.ClassScore(label=request.class_name or "church", class_id="n1", index=1, probability=0.75),
        best=CHURCH,
        layer=layer_name(request.layer),
        map=request.map if request.HasField("map") else 5,
        map_sum=8.0,
        unit=pb.Position(row=3, column=4),
        activation=2.5,
        computation=COMPUTATION,
        model=MODEL,
        source_box=pb.Box(left=0, top=0, right=64, bottom=64) if sized else None,
    )
    yield pb.OccludeResponse(sequence=0, total_places=6, plan=plan, spacing=2)
    yield _places([(0, 0), (2, 0)], sequence=1, total_places=6, done_places=2, spacing=2)
    last = _places([(0, 1), (1, 0), (1, 1), (2, 1)], sequence=2, total_places=6, done_places=6, spacing=1)
    last.summary.CopyFrom(
        pb.OcclusionSummary(
            box=pb.Box(left=0, top=0, right=12, bottom=12),
            source_box=pb.Box(left=0, top=0, right=24, bottom=24) if sized else None,
            probability=0.0,
            map_box=pb.Box(left=16, top=20, right=28, bottom=32),
            map_source_box=pb.Box(left=32, top=40, right=56, bottom=64) if sized else None,
            map_sum=-5.0,
        )
    )
    yield last


def _places(places: list[tuple[int, int]], **fields: int) -> pb.OccludeResponse:
    """Returns the results of places. Place (r, c) has the number n = 2 r + c: the probability is n / 8, the class is n,
    and the sum is -n."""
    numbers = [2 * row + column for row, column in places]
    return pb.OccludeResponse(
        rows=[row for row, _ in places],
        columns=[column for _, column in places],
        probabilities=[number / 8 for number in numbers],
        best_classes=numbers,
        map_sums=[-number for number in numbers],
        **fields,  # type: ignore[arg-type]
    )


def ablation_messages(request: pb.AblateRequest) -> Iterator[pb.AblateResponse]:
    """Yields one message for each group."""
    chosen = request.WhichOneof("maps")
    count = request.for_class.count if chosen == "for_class" else request.strongest
    groups = [list(group.indices) for group in request.groups.groups] or [[at] for at in range(count)]
    for rank, maps in enumerate(groups):
        message = pb.AblateResponse(
            rank=rank, total=len(groups), maps=maps, alone=[0.25, 0.75], cumulative=[0.5 + rank / 8, 0.5 - rank / 8]
        )
        if chosen == "for_class":
            message.attribution = 0.25 - rank / 2
        if rank == 0:
            message.untouched.extend((0.125, 0.875))
            message.layer = layer_name(request.layer)
            message.computation.CopyFrom(COMPUTATION)
            message.model.CopyFrom(MODEL)
            if chosen == "for_class":
                message.for_class.CopyFrom(CHURCH)
        yield message


def transform_messages(request: pb.TransformRequest) -> Iterator[pb.TransformResponse]:
    """Yields one message for each step."""
    steps = list(request.steps) or [0.0, 10.0]
    for rank, step in enumerate(steps):
        message = pb.TransformResponse(
            rank=rank,
            total=len(steps),
            step=step,
            for_class=TENCH,
            best=CHURCH,
            low=pb.FeatureDistance(layer=request.low_layer or "conv1", distance=3.0 * rank, relative=0.25 * rank),
            high=pb.FeatureDistance(layer="features", distance=1.0 * rank, relative=0.125 * rank),
            picture_png=png((10, 20, 30)) if request.include_pictures else b"",
        )
        if rank == 0:
            message.untouched.CopyFrom(CHURCH)
            message.kind, message.border, message.resampling = request.kind, request.border, request.resampling
            message.computation.CopyFrom(COMPUTATION)
            message.model.CopyFrom(MODEL)
        yield message
