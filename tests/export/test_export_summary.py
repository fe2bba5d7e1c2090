import pytest
from zfserve_export.export_summary import describe_network
from zfserve_runtime.bundle import Bundle, LayerEntry

LAYER = LayerEntry(
    name="conv1", kind="conv", stage="stem", channels=4, height=8, width=8, receptive_field=3, stride=1, offset=-1
)
OBSTACLE = "the operation Softmax 'attention' stands between the layer and the photo"


@pytest.mark.parametrize(
    ("layers", "obstacle", "line"),
    [
        ((), OBSTACLE, f"projections  none: {OBSTACLE}"),
        ((LAYER,), "", "projections  by the paper rule from 1 layer (stem 1)"),
        ((LAYER,), OBSTACLE, f"projections  by the paper rule from 1 layer (stem 1); further up, {OBSTACLE}"),
        (
            (LAYER, LAYER.model_copy(update={"name": "b", "stage": "stage1", "rule": "extended"})),
            "",
            "projections  by the extended rule from 2 layers (stem 1, stage1 1)",
        ),
    ],
)
def test_the_summary_says_what_can_be_projected(
    bundle: Bundle, layers: tuple[LayerEntry, ...], obstacle: str, line: str
) -> None:
    manifest = bundle.manifest.model_copy(update={"layers": layers, "projection_obstacle": obstacle})
    assert line in describe_network(manifest)


def test_a_network_that_takes_one_image_at_a_time_says_so(bundle: Bundle) -> None:
    assert not [line for line in describe_network(bundle.manifest) if line.startswith("batches")]
    fixed = bundle.manifest.model_copy(update={"fixed_batch_size": 1})
    assert "batches      of 1 only" in describe_network(fixed)
