"""Tests which rule a projection follows, which products are gates or activations, and what is refused by name."""

from collections.abc import Callable

import pytest
import torch
from fakes.network_graphs import RunningGraphBuilder
from zfserve_model.explanation.rules import ProjectionRule, passage, projection_rule

CHANNELS = 4
Build = Callable[[RunningGraphBuilder, str], str]


def conv(builder: RunningGraphBuilder, x: str, name: str = "") -> str:
    weight = torch.ones(CHANNELS, builder.values[x].shape[1], 1, 1)
    return builder.add("Conv", x, weight, torch.zeros(CHANNELS), name=name)


def rule_of(build: Build) -> ProjectionRule:
    """Returns the rule of a layer above what `build` makes of a convolution's output."""
    builder = RunningGraphBuilder(3, 5, 5)
    layer = conv(builder, build(builder, conv(builder, "images")))
    return projection_rule(builder.build(), layer)


def squeeze_and_excitation(builder: RunningGraphBuilder, x: str) -> str:
    gate = builder.add("Sigmoid", conv(builder, builder.add("GlobalAveragePool", x)))
    return builder.add("Mul", x, gate)


def parameter_free_attention(builder: RunningGraphBuilder, x: str) -> str:
    """SimAM: the gate depends on the mean of the map."""
    centred = builder.add("Sub", x, builder.add("ReduceMean", x, torch.tensor([2, 3]), keepdims=1))
    return builder.add("Mul", builder.add("Sigmoid", builder.add("Mul", centred, centred)), x)


def gated_linear_unit(builder: RunningGraphBuilder, x: str) -> str:
    builder.add("Split", x, torch.tensor([2, 2]), outputs=["value", "gate"], axis=1)
    return builder.add("Mul", "value", builder.add("Sigmoid", "gate"))


GATES: dict[str, Build] = {
    "squeeze and excitation": squeeze_and_excitation,
    "gate of places": lambda builder, x: builder.add("Mul", builder.add("Sigmoid", conv(builder, x)), x),
    "parameter-free attention": parameter_free_attention,
    "gated linear unit": gated_linear_unit,
}


def scaled_sigmoid(builder: RunningGraphBuilder, x: str) -> str:
    """The gate has a scale for each channel, so no known activation has its values."""
    scaled = builder.add("Mul", x, torch.ones(CHANNELS, 1, 1), name="scale")
    return builder.add("Mul", x, builder.add("Sigmoid", scaled), name="product")


def scaled_by_batch_norm(builder: RunningGraphBuilder, x: str) -> str:
    ones = torch.ones(CHANNELS)
    normed = builder.add("BatchNormalization", x, ones, ones, ones, ones)
    return builder.add("Mul", builder.add("Sigmoid", normed), x, name="product")


def quotient(builder: RunningGraphBuilder, x: str) -> str:
    return builder.add("Div", x, builder.add("Abs", builder.add("Add", x, torch.tensor(1.0))), name="product")


UNNAMED: dict[str, Build] = {
    "scale of channels": scaled_sigmoid,
    "batch norm": scaled_by_batch_norm,
    "quotient": quotient,
    "square": lambda builder, x: builder.add("Mul", x, x, name="product"),
    "of its rectified self": lambda builder, x: builder.add(
        "Mul", builder.add("Relu", x), builder.add("Tanh", x), name="product"
    ),
}

OBSTACLES: dict[str, Build] = {
    "'top' (Softmax)": lambda builder, x: builder.add("Softmax", x, axis=1, name="top"),
    "'top' (Tanh)": lambda builder, x: builder.add("Tanh", x, name="top"),
    "'top' (Clip)": lambda builder, x: builder.add("Clip", x, torch.tensor(-1.0), torch.tensor(1.0), name="top"),
    "'top' (Mul)": lambda builder, x: builder.add("Mul", x, conv(builder, x), name="top"),
    "'top' (Div)": lambda builder, x: builder.add("Div", x, conv(builder, x), name="top"),
    "'top' (MatMul)": lambda builder, x: builder.add("MatMul", x, conv(builder, x), name="top"),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_constant(name: str) -> None:
    assert rule_of(GATES[name]) == ProjectionRule("paper")


@pytest.mark.parametrize("name", UNNAMED)
def test_a_product_of_functions_of_one_tensor_is_an_activation(name: str) -> None:
    assert rule_of(UNNAMED[name]) == ProjectionRule("extended", ("product",))


@pytest.mark.parametrize("title", OBSTACLES)
def test_what_a_projection_cannot_pass_is_named(title: str) -> None:
    assert rule_of(OBSTACLES[title]).obstacle == f"no projection can pass the node {title}"


def test_an_activation_takes_the_place_of_the_product() -> None:
    builder = RunningGraphBuilder(3, 5, 5)
    x = conv(builder, "images")
    doubled = builder.add("Mul", x, torch.tensor(2.0))
    builder.add("Mul", builder.add("Tanh", doubled), doubled, name="product")
    graph = builder.build()
    node, inputs = passage(graph, next(node for node in graph.nodes if node.name == "product"))
    assert (node.inputs, inputs) == ((doubled,), (0,))  # The factor 2 below stays a multiplication.


def test_activations_are_named_in_forward_order() -> None:
    def build(builder: RunningGraphBuilder, x: str) -> str:
        x = builder.add("Relu", conv(builder, builder.add("Silu", x, name="first")))
        left = builder.add("Gelu", conv(builder, x), name="second")
        return builder.add("Add", builder.add("LeakyRelu", x, name="third"), left)

    assert rule_of(build) == ProjectionRule("extended", ("first", "second", "third"))


def test_what_lies_beside_the_way_changes_no_rule() -> None:
    """The activation inside of a gate is not passed. The one above the layer is not either."""
    builder = RunningGraphBuilder(3, 5, 5)
    x = conv(builder, "images")
    squeezed = builder.add("Silu", conv(builder, builder.add("GlobalAveragePool", x)))
    layer = builder.add("Mul", x, builder.add("Sigmoid", conv(builder, squeezed)))
    builder.add("Gelu", layer)
    assert projection_rule(builder.build(), layer) == ProjectionRule("paper")
