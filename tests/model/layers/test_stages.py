"""Stages and names are those that a user of the source knows."""

import pytest
from fakes.graph_builder import GraphBuilder
from zfserve_model.graph.graph import Graph, Node
from zfserve_model.layers.layer_choice import Layer
from zfserve_model.layers.layer_table import layer_table
from zfserve_model.layers.stages import layer_names, stage_names


def layers_of(listing: str) -> tuple[Graph, list[Layer]]:
    """Reads one layer a line: its path, its operation and the side of its map."""
    shapes, layers = {}, []
    for number, line in enumerate(listing.split("\n")):
        path, operation, side = line.split()
        shapes[f"t{number}"] = (1, 8, int(side), int(side))
        parts = tuple(path.split("."))
        joins = operation in ("Add", "Concat")
        layers.append(Layer(f"t{number}", Node(operation, (), ()), parts, parts[:-1], block=joins, joins=joins))
    return Graph((), {}, "images", "p", "l", None, shapes), layers


@pytest.mark.parametrize(
    ("listing", "stages"),
    [
        # pytorchcv, with a convolution after the last stage
        (
            "init_block Relu 112\nstage1.unit1 Add 56\nstage2.unit1 Add 28\nfinal_block Relu 28",
            "stem stage1 stage2 head",
        ),
        # torchvision's ResNet
        ("relu Relu 112\nmaxpool MaxPool 56\nlayer1.0 Add 56\nlayer2.0 Add 28", "stem stem stage1 stage2"),
        # torchvision's DenseNet: a transition belongs to the stage of its size
        (
            "relu0 Relu 112\ndenseblock1 Concat 56\ntransition1 AveragePool 28\ndenseblock2 Concat 28\nnorm5 Relu 28",
            "stem stage1 stage2 stage2 head",
        ),
        # timm counts from 0
        ("stem Conv 56\nstages.0.blocks.0 Add 56\nstages.1.blocks.0 Add 28", "stem stage1 stage2"),
        ("conv_stem Conv 112\nblocks.0.0 Conv 112\nblocks.1.0 Conv 56\nblocks.1.1 Add 56", "stem stage1 stage2 stage2"),
        ("stem Relu 112\ns1.b1 Add 56\ns2.b1 Add 28", "stem stage1 stage2"),
        # torchvision's MobileNetV2 has numbers alone, and Xception's blocks are no stages: the sizes decide
        ("features.0 Conv 112\nfeatures.1 Add 112\nfeatures.2 Conv 56\nfeatures.3 Add 56", "stem stage1 stage2 stage2"),
        ("conv1 Relu 149\nblock1 Add 74\nblock2 Add 37\nblock3 Add 37", "stem stage1 stage2 stage2"),
        # Keras's ResNet
        ("conv1_relu Relu 112\nconv2_block1_out Add 56\nconv3_block1_out Add 28", "stem stage1 stage2"),
    ],
)
def test_stages_of_networks_with_blocks(listing: str, stages: str) -> None:
    graph, layers = layers_of(listing)
    assert stage_names(graph, layers, chain=False) == stages.split()


@pytest.mark.parametrize(
    ("listing", "stages"),
    [
        # ours: stages 3 to 5 have one size
        (
            "conv1 Conv 9\nrelu1 Relu 9\npool1 MaxPool 5\nconv2 Conv 5\nconv3 Conv 5",
            "stage1 stage1 stage1 stage2 stage3",
        ),
        # Caffe's VGG
        ("conv1_1 Conv 9\nconv1_2 Conv 9\npool1 MaxPool 5\nconv2_1 Conv 5", "stage1 stage1 stage1 stage2"),
        # torchvision's VGG: a stage ends with its pool
        (
            "features.0 Conv 9\nfeatures.1 Relu 9\nfeatures.2 MaxPool 5\nfeatures.3 Conv 5",
            "stage1 stage1 stage1 stage2",
        ),
        # all strides in convolutions
        ("a Conv 9\nb Conv 9\nc Conv 5\nd Conv 5", "stage1 stage1 stage2 stage2"),
    ],
)
def test_stages_of_chains(listing: str, stages: str) -> None:
    graph, layers = layers_of(listing)
    assert stage_names(graph, layers, chain=True) == stages.split()


@pytest.mark.parametrize(
    ("listing", "names"),
    [
        ("features.stage1.unit1 Add 9\nfeatures.stage2.unit1 Add 5", "stage1.unit1 stage2.unit1"),
        ("features.0 Conv 9\nfeatures.1 Relu 9", "features.0 features.1"),  # a number alone is no name
        ("model.backbone.conv1 Conv 9\nmodel.backbone.layer1.0 Add 9\nrelu Relu 9", "conv1 layer1.0 relu"),
        ("net.a Conv 9\na Relu 9", "net.a a"),  # without its prefix the first would be called as the second
        ("conv1 Conv 9\nrelu Relu 9\nconv2 Conv 9\nrelu Relu 9\nrelu Relu 9", "conv1 relu conv2 relu_1 relu_2"),
        ("_stem Conv 9\n_blocks.0 Add 9", "stem blocks.0"),
        ("relu Relu 9\nrelu_1 Relu 9\nrelu Relu 9", "relu relu_1 relu_2"),
    ],
)
def test_names_are_short_and_unique(listing: str, names: str) -> None:
    _, layers = layers_of(listing)
    assert layer_names(layers, ["stage1"] * len(layers), chain=False) == names.split()


def test_a_chain_without_names_is_called_by_kind_and_stage() -> None:
    net = GraphBuilder(40, 40)
    x = "images"
    for convolutions in (2, 1):
        for _ in range(convolutions):
            x = net.relu(net.conv(x, 4, pads=(1, 1, 1, 1)))
        x = net.pool(x, 2, 2)
    names = [row.name for row in layer_table(net.graph())]
    assert names == ["conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1", "conv2", "relu2", "pool2"]


def test_a_long_chain_counts_an_activation_with_its_convolution() -> None:
    """MobileNet has 27 convolutions and 27 activations in one line."""
    net = GraphBuilder(24, 24)
    x = "images"
    for unit in range(25):
        x = net.relu(net.conv(x, 2, (1, 1), name=f"/units/unit{unit}/conv/Conv"), f"/units/unit{unit}/activ/Relu")
    table = layer_table(net.graph())
    assert [(row.name, row.kind) for row in table] == [(f"unit{unit}", "relu") for unit in range(25)]


def test_branches_that_never_meet_before_the_end_are_offered_by_their_size() -> None:
    """HRNet keeps maps of several sizes side by side, so no single tensor carries all that a stage knows."""
    net = GraphBuilder(48, 48)
    fine = net.relu(net.conv("images", 4, pads=(1, 1, 1, 1), name="/stem/conv/Conv"), "/stem/activ/Relu")
    coarse = net.conv(fine, 4, (2, 2), (2, 2), name="/stage1/down/Conv")
    fine = net.conv(fine, 4, pads=(1, 1, 1, 1), name="/stage1/fine/Conv")
    small = net.conv(fine, 4, (2, 2), (2, 2), name="/stage2/down/Conv")
    net.join("Add", [small, coarse], "/stage2/Add")
    table = layer_table(net.graph())
    assert [(row.name, row.stage, row.height) for row in table] == [
        ("stem", "stem", 48),
        ("stage1.24x24", "stage1", 24),
        ("stage1.48x48", "stage1", 48),
        ("stage2", "stage2", 24),
    ]


def test_a_block_of_one_kind_is_a_block_everywhere() -> None:
    """MobileNetV2 has blocks with a residual, and blocks of the same class without one."""
    net = GraphBuilder(24, 24)
    x = net.conv("images", 4, (1, 1), name="/stem/Conv")
    for unit in (1, 2):
        below = x
        x = net.relu(net.conv(x, 8, (1, 1), name=f"/unit{unit}/expand/Conv"), f"/unit{unit}/activ/Relu")
        x = net.conv(x, 4, (1, 1), name=f"/unit{unit}/project/Conv")
        x = net.join("Add", [below, x], f"/unit{unit}/Add") if unit == 2 else x
    assert [(row.name, row.kind) for row in layer_table(net.graph())] == [
        ("stem", "conv"),
        ("unit1", "conv"),
        ("unit2", "add"),
    ]


def test_a_wrapper_is_no_block() -> None:
    """A module that holds most of the network is looked into, also where its own code joins branches."""
    net = GraphBuilder(64, 64)
    x = "images"
    for stage in (1, 2, 3):
        x = net.relu(
            net.conv(x, 4, (2, 2), (2, 2), name=f"/net/stage{stage}/conv/Conv"), f"/net/stage{stage}/activ/Relu"
        )
    y = net.conv(x, 4, (1, 1), name="/net/extra/Conv")
    net.join("Add", [x, y], "/net/Add")
    assert [row.name for row in layer_table(net.graph())] == ["stage1", "stage2", "stage3", "add"]
