"""The layer table lists what a user of the network would name, with the names and stages of the source."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fakes.graph_builder import GraphBuilder
from zfserve_model.graph.graph import Graph, Node
from zfserve_model.importing.module_paths import module_path
from zfserve_model.layers.layer_table import layer_table

Name = Callable[[str, int, int, str], str]


def residual_network(name: Name) -> Graph:
    """Builds a ResNet with two stages of two blocks. `name` gets the part, the stage, the block and the operation."""
    net = GraphBuilder(64, 64)

    def conv(source: str, width: int, kernel: int, step: int, part: str, stage: int = 0, block: int = 0) -> str:
        pads = (kernel // 2,) * 4
        return net.conv(source, width, (kernel, kernel), (step, step), pads, name=name(part, stage, block, "Conv"))

    x = net.relu(conv("images", 4, 7, 2, "conv"), name("relu", 0, 0, "Relu"))
    x = net.pool(x, 3, 2, 1, ceil=False, name=name("pool", 0, 0, "MaxPool"))
    for stage, block in ((1, 1), (1, 2), (2, 1), (2, 2)):
        step = 2 if (stage, block) == (2, 1) else 1
        around = conv(x, 8, 1, 2, "down", stage, block) if step == 2 else x
        y = net.relu(conv(x, 4 * stage, 3, step, "conv1", stage, block), name("relu1", stage, block, "Relu"))
        y = conv(y, 4 * stage, 3, 1, "conv2", stage, block)
        x = net.join("Add", [y, around], name("add", stage, block, "Add"))
        x = net.relu(x, name("relu2", stage, block, "Relu"))
    return net.graph()


def torchvision_names(part: str, stage: int, block: int, operation: str) -> str:
    """Names nodes as torch's older exporter does for torchvision: a child of an nn.Sequential repeats its parent."""
    if stage == 0:
        return f"/{'maxpool' if part == 'pool' else part}{'1' if part == 'conv' else ''}/{operation}"
    inner = {"add": "", "down": "downsample/downsample.0/", "relu1": "relu/", "relu2": "relu_1/"}.get(part, f"{part}/")
    return f"/layer{stage}/layer{stage}.{block - 1}/{inner}{operation}"


def pytorchcv_names(part: str, stage: int, block: int, operation: str) -> str:
    if stage == 0:
        return f"/features/init_block/{'pool' if part == 'pool' else f'conv/{part}'}/{operation}"
    inner = {"add": "", "down": "identity_conv/conv/", "relu2": "activ/"}.get(part, f"body/{part}/")
    return f"/features/stage{stage}/unit{block}/{inner}{operation}"


def keras_names(part: str, stage: int, block: int, operation: str) -> str:
    inner = {"conv1": "1_conv", "relu1": "1_relu", "conv2": "2_conv", "down": "0_conv", "add": "add", "relu2": "out"}
    if stage == 0:
        return f"model/conv1_{part}/{operation}"
    return f"model/conv{stage + 1}_block{block}_{inner[part]}/{operation}"


def numbered_names(part: str, stage: int, block: int, operation: str) -> str:
    return f"{operation}_{stage * 31 + block * 7 + len(part)}"


def no_names(part: str, stage: int, block: int, operation: str) -> str:
    return ""


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (torchvision_names, ["relu", "maxpool", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]),
        (
            pytorchcv_names,
            ["init_block.conv", "init_block.pool", "stage1.unit1", "stage1.unit2", "stage2.unit1", "stage2.unit2"],
        ),
        (
            keras_names,
            [
                "conv1_relu",
                "conv1_pool",
                "conv2_block1_out",
                "conv2_block2_out",
                "conv3_block1_out",
                "conv3_block2_out",
            ],
        ),
        (no_names, ["stem.1", "stem.2", "stage1.1", "stage1.2", "stage2.1", "stage2.2"]),
        (numbered_names, ["stem.1", "stem.2", "stage1.1", "stage1.2", "stage2.1", "stage2.2"]),
    ],
)
def test_a_residual_network_lists_its_stem_and_its_blocks(names: Name, expected: list[str]) -> None:
    table = layer_table(residual_network(names))
    assert [row.name for row in table] == expected
    assert [row.stage for row in table] == ["stem", "stem", "stage1", "stage1", "stage2", "stage2"]
    assert [row.kind for row in table] == ["relu", "pool", "relu", "relu", "relu", "relu"]
    assert [(row.channels, row.height) for row in table] == [(4, 32), (4, 16), (4, 16), (4, 16), (8, 8), (8, 8)]
    # By hand: 7, + 2 * 2, + 4 * 4 and + 4 * 4 in each block of stage 1, + 2 * 4 + 2 * 8 in the block with the stride.
    assert [row.receptive_field for row in table] == [7, 11, 27, 43, 67, 99]
    assert [row.stride for row in table] == [2, 4, 4, 4, 8, 8]
    assert [row.offset for row in table] == [-3, -5, -13, -21, -33, -49]


def test_the_scopes_of_torchs_newer_exporter_give_the_same_names() -> None:
    """Its nodes are called after the functions of PyTorch, and carry the modules around them. Modules can be reused."""
    old = residual_network(torchvision_names)
    nodes = []
    for number, node in enumerate(old.nodes):
        path = ".".join(module_path(node)).replace("relu_1", "relu")
        scopes = ((path.partition(".")[0], "torch.nn.Sequential"), (path, "torch.nn.ReLU")) if path else ()
        nodes.append(replace(node, name=f"node_{node.operation.lower()}_{number}", scopes=scopes))
    assert layer_table(replace(old, nodes=tuple(nodes))) == layer_table(old)


def test_only_layers_below_an_obstacle_are_listed_and_a_convention_is_named() -> None:
    net = GraphBuilder(16, 16)
    x = net.relu(net.conv("images", 4, name="/a/Conv"), "/b/Relu")
    x = net.conv(x, 4, name="/c/Conv")
    x = net.add("Silu", [x], net.values[x].clone(), "/d/Silu")
    x = net.add("NonLinearity", [x], net.values[x].clone(), "/e/NonLinearity")
    net.conv(x, 4, name="/f/Conv")
    table = layer_table(net.graph())
    assert [(row.name, row.rule) for row in table] == [
        ("a", "paper"),
        ("b", "paper"),
        ("c", "paper"),
        ("d", "extended"),
    ]


def test_layers_with_channels_last_have_their_own_names() -> None:
    """A converter of Keras puts a Transpose around each convolution, and calls it after the convolution."""
    net = GraphBuilder(16, 24)

    def transpose(source: str, perm: list[int], name: str) -> str:
        return net.add("Transpose", [source], net.values[source].permute(perm).clone(), f"model/{name}", perm=perm)

    x = transpose("images", [0, 2, 3, 1], "rescale/Mul__5")
    x = net.add("Mul", [x, net.constant(torch.ones(()))], net.values[x].clone(), "model/rescale/Mul")
    x = net.conv(transpose(x, [0, 3, 1, 2], "conv1/Conv2D__6"), 4, name="model/conv1/Conv2D")
    x = net.relu(transpose(x, [0, 2, 3, 1], "conv1/Conv2D__7"), "model/relu1/Relu")
    x = net.conv(transpose(x, [0, 3, 1, 2], "conv2/Conv2D__8"), 5, name="model/conv2/Conv2D")
    transpose(net.relu(x, "model/relu2/Relu"), [0, 2, 3, 1], "relu2/Relu__9")
    table = layer_table(net.graph())
    assert [(row.name, row.kind, row.channels, row.height, row.width) for row in table] == [
        ("rescale", "mul", 3, 16, 24),
        ("conv1", "conv", 4, 14, 22),
        ("relu1", "relu", 4, 14, 22),
        ("conv2", "conv", 5, 12, 20),
        ("relu2", "relu", 5, 12, 20),
    ]


def test_a_network_without_maps_has_no_layers() -> None:
    """A vision transformer whose first operation cannot be projected is served for its classes alone."""
    node = Node("Attention", ("images",), ("logits",), supported=False)
    graph = Graph((node,), {}, "images", "logits", "logits", None, {"images": (1, 3, 8, 8), "logits": (1, 2)})
    assert layer_table(graph) == ()
