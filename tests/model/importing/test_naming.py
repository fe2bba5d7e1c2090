from zfserve_model.graph.graph import Node
from zfserve_model.importing.naming import name_nodes


def test_a_split_belongs_to_the_module_that_reads_its_parts() -> None:
    """Torch's exporter gives a Split no module. What ShuffleNet's units split comes from the unit before."""

    def node(operation: str, inputs: tuple[str, ...], output: str, module: str) -> Node:
        scopes = (("features", "torch.nn.Sequential"), (module, "Unit")) if module else ()
        return Node(operation, inputs, (output,), {}, f"node_{output}", scopes)

    nodes = [
        node("Relu", ("images",), "a", "features.unit1"),
        node("Split", ("a",), "b", ""),
        node("Conv", ("b", "w"), "c", "features.unit2"),
        node("Concat", ("b", "c"), "d", "features.unit2"),
    ]
    assert [named.name for named in name_nodes(nodes, {})] == [
        "features.unit1",
        "features.unit2",
        "features.unit2",
        "features.unit2",
    ]
