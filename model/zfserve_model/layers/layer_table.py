"""The layer table describes the layers of a network that can be projected: shape, stage and receptive field.

Export writes the table into the bundle's manifest. The worker computes it again from the same graph.
"""

from dataclasses import dataclass
from typing import Literal

from zfserve_model.explanation.rules import projection_rule
from zfserve_model.graph.graph import Graph
from zfserve_model.layers.layer_choice import choose_layers
from zfserve_model.layers.receptive_field import pitches, see_whole_image
from zfserve_model.layers.stages import layer_names, stage_names


@dataclass(frozen=True)
class LayerRow:
    """Describes one layer.

    A unit of row i sees the image's rows from `offset + i * stride` up to, but not including,
    `offset + i * stride + receptive_field`, and i counts from 0. The fields with `_width` say the same of columns.
    Pixels outside of the image are padding. Behind a resize a unit may see a few pixels less.

    Attributes:
        name: the path in the source, without the part that all layers share. No other layer has this name.
        tensor: the name of the layer's tensor in the graph.
        kind: the operation that computes it, for example "conv", "relu", "norm", "pool", "add" or "concat".
        stage: the stage that the layer belongs to, for example "stem", "stage4" or "head".
        channels, height, width: the shape of the layer's output.
        receptive_field, receptive_field_width: how many rows and columns a unit sees, in input pixels, without gates.
        stride, stride_width: the distance between neighbouring units, in input pixels.
        offset, offset_width: the first row and column that unit 0 sees. Negative if they lie in the padding.
        whole_image: True if every unit depends on the whole image, because its field is that large, or behind a gate
            such as squeeze-and-excitation. A projection takes a gate as constant, so its picture stays in the field.
        rule: "paper" where all activations below are ReLUs, "extended" where the rule for some is a convention.
    """

    name: str
    tensor: str
    kind: str
    stage: str
    channels: int
    height: int
    width: int
    receptive_field: int
    stride: int
    offset: int
    receptive_field_width: int
    stride_width: int
    offset_width: int
    whole_image: bool
    rule: Literal["paper", "extended"]


def layer_table(graph: Graph) -> tuple[LayerRow, ...]:
    """Returns the layers in forward order. It is empty where no layer can be projected."""
    layers, chain = choose_layers(graph)
    stages = stage_names(graph, layers, chain=chain)
    names = layer_names(layers, stages, chain=chain)
    rules = [projection_rule(graph, layer.tensor) for layer in layers]
    kept = [place for place, rule in enumerate(rules) if not rule.obstacle]
    tensors = [layers[place].tensor for place in kept]
    fields, whole = pitches(graph, tensors), see_whole_image(graph, tensors)
    table = []
    for place, (rows, columns), sees_all in zip(kept, fields, whole, strict=True):
        layer = layers[place]
        _, channels, height, width = graph.shapes[layer.tensor]
        table.append(
            LayerRow(
                names[place],
                layer.tensor,
                layer.kind,
                stages[place],
                channels,
                height,
                width,
                receptive_field=rows.size,
                stride=rows.stride,
                offset=rows.offset,
                receptive_field_width=columns.size,
                stride_width=columns.stride,
                offset_width=columns.offset,
                whole_image=sees_all,
                rule=rules[place].rule,
            )
        )
    return tuple(table)
