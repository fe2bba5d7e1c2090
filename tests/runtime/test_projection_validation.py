"""Names of layers and classes are resolved, and errors stay short for large networks."""

import pytest
from fakes.serving import MANIFEST
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import ClassEntry, LayerEntry, Manifest
from zfserve_runtime.errors import InvalidInput, NotFound, ServiceError, Unimplemented
from zfserve_runtime.projection_validation import (
    find_class,
    find_layer,
    map_count,
    validate_explanation_request,
    validate_projection_request,
)

OBSTACLE = "the node 'blocks.0.attn' (Softmax) has no backward step"


def changed(**fields: object) -> Manifest:
    return MANIFEST.model_copy(update=fields)


def large_network() -> Manifest:
    """Returns the manifest of a network with 120 layers in four stages and a thousand classes."""
    layers = [
        LayerEntry(
            name=f"stage{at // 30 + 1}.unit{at % 30}.relu",
            kind="relu",
            stage=f"stage{at // 30 + 1}",
            channels=64,
            height=7,
            width=7,
            receptive_field=99,
            stride=32,
            offset=-40,
        )
        for at in range(120)
    ]
    classes = [ClassEntry(class_id=f"n{at:08}", label=f"bird number {at} of a long list, Aves") for at in range(1000)]
    return changed(layers=tuple(layers), classes=tuple(classes))


def failure(request: pb.ProjectRequest | pb.ExplainRequest, manifest: Manifest) -> ServiceError:
    validate = validate_projection_request if isinstance(request, pb.ProjectRequest) else validate_explanation_request
    with pytest.raises(ServiceError) as caught:
        validate(request, manifest)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("name", ["conv1", "stage1", "last"])
def test_a_layer_is_found_by_its_name_its_stage_or_as_last(name: str) -> None:
    assert find_layer(name, MANIFEST).name == "conv1", "a pool does not stand for its stage"
    assert validate_projection_request(pb.ProjectRequest(layer=name), MANIFEST).name == "conv1"


def test_an_explanation_is_of_the_last_layer_unless_the_request_names_one() -> None:
    assert validate_explanation_request(pb.ExplainRequest(), MANIFEST).name == "conv1"
    assert validate_explanation_request(pb.ExplainRequest(layer="pool1"), MANIFEST).name == "pool1"


def test_the_default_number_of_maps_is_bounded_by_the_layer() -> None:
    layer = find_layer("conv1", MANIFEST)
    assert map_count(pb.ProjectRequest(), layer) == 6
    assert map_count(pb.ProjectRequest(), layer.model_copy(update={"channels": 512})) == 9
    assert map_count(pb.ProjectRequest(selection=pb.MapSelection(indices=[1, 2])), layer) == 2


def test_a_small_network_lists_all_its_layers() -> None:
    error = failure(pb.ProjectRequest(layer="conv9"), MANIFEST)
    assert type(error) is NotFound
    assert error.message == ("there is no layer 'conv9' that can be projected; choose last or one of conv1, pool1")


def test_a_large_network_lists_its_stages() -> None:
    error = failure(pb.ProjectRequest(layer="layer4" + "x" * 500), large_network())
    assert type(error) is NotFound
    assert error.message.endswith(
        "; choose last, a stage (stage1, stage2, stage3, stage4), or one of 120 layers, such as stage1.unit0.relu and "
        "stage4.unit29.relu"
    )
    assert len(error.message) < 400


def test_a_large_network_lists_similar_classes_or_a_few() -> None:
    manifest = large_network()
    error = failure(pb.ExplainRequest(class_name="Number 99"), manifest)
    assert (type(error), error.field) == (NotFound, "class_name")
    assert error.message.startswith(
        "there is no class 'Number 99'; choose one of bird number 99 of a long list, Aves, "
    )
    error = failure(pb.ExplainRequest(class_name="violet"), manifest)
    assert error.message.endswith("bird number 11 of a long list, Aves, ... (988 more)")
    assert len(error.message) < 550
    found = find_class("n00000123", manifest, "class_name")
    assert found == find_class("bird number 123 of a long list, Aves", manifest, "class_name") == 123


def test_a_label_of_many_classes_names_a_few_of_their_ids() -> None:
    manifest = changed(classes=tuple(ClassEntry(class_id=f"c{at}", label="crane") for at in range(50)))
    error = failure(pb.ProjectRequest(layer="conv1", for_class=pb.ClassMaps(class_name="crane")), manifest)
    assert (type(error), error.field) == (InvalidInput, "for_class.class_name")
    assert error.message.startswith("50 classes are called 'crane'; give the id of one: c0, c1, ")
    assert error.message.endswith("c19, ... (30 more)")


def test_the_node_in_the_way_of_a_projection_is_named() -> None:
    nothing = changed(layers=(), projection_obstacle=OBSTACLE)
    error = failure(pb.ProjectRequest(layer="last"), nothing)
    assert (type(error), error.field) == (Unimplemented, "layer")
    assert error.message == f"there is no layer 'last' that can be projected: {OBSTACLE}"
    some = changed(projection_obstacle=OBSTACLE)
    assert validate_projection_request(pb.ProjectRequest(layer="conv1"), some).name == "conv1"
    assert failure(pb.ProjectRequest(layer="blocks.3"), some).message.endswith(
        f"{OBSTACLE}; choose last or one of conv1, pool1"
    )


def test_the_refusal_of_an_explanation_speaks_of_explanations() -> None:
    nothing = changed(layers=(), projection_obstacle=OBSTACLE)
    error = failure(pb.ExplainRequest(), nothing)
    assert (type(error), error.field) == (Unimplemented, "layer")
    assert error.message == f"no layer of this network can be explained: {OBSTACLE}"
    for manifest in (MANIFEST, changed(projection_obstacle=OBSTACLE)):
        error = failure(pb.ExplainRequest(layer="conv9"), manifest)
        assert (type(error), error.field) == (NotFound, "layer")
        assert error.message == "there is no layer 'conv9' that can be explained; choose last or one of conv1, pool1"


def test_a_network_without_any_layer_says_so() -> None:
    error = failure(pb.ProjectRequest(layer="last"), changed(layers=()))
    assert type(error) is NotFound
    assert error.message == "there is no layer 'last' that can be projected"


def test_the_node_in_the_way_of_an_attribution_refuses_classes_only() -> None:
    manifest = changed(attribution_obstacle=OBSTACLE)
    for request in (pb.ExplainRequest(), pb.ProjectRequest(layer="conv1", for_class=pb.ClassMaps())):
        error = failure(request, manifest)
        assert type(error) is Unimplemented
        assert error.message == f"this network's classes cannot be explained: {OBSTACLE}"
    assert validate_projection_request(pb.ProjectRequest(layer="conv1", strongest=1), manifest).name == "conv1"


def test_an_unknown_method_is_refused() -> None:
    error = failure(pb.ExplainRequest(method=9), MANIFEST)  # type: ignore[arg-type]
    assert (type(error), error.field) == (InvalidInput, "method")
    assert "EXPLANATION_METHOD_GRAD_CAM" in error.message
