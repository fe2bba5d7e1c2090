"""Draws the filters of the first convolution (figure 6 of the paper), where the weights are at hand."""

from pathlib import Path

from zfserve.model_description import ModelDescription
from zfserve_cli.picture_files import write_picture

from zfserve_studies.run_folder import CannotContinue

FILTERS_FILE = "filters.png"


def write_filters(folder: Path, weights: Path | None, description: ModelDescription) -> str:
    """Writes the filters that the weights have. Returns a sentence that says where they come from.

    Without weights nothing is written and "" is returned. The projections of a first convolution are then its filters,
    scaled by the activation: a unit of conv1 projects through its own filter alone.

    Raises:
        CannotContinue: the weights cannot be read, or belong to a network of another shape.
        NotSaved: the picture cannot be written.
    """
    if weights is None:
        return ""
    from zfserve_model.render import render_filters
    from zfserve_model.weights_import import load_weights

    try:
        checkpoint = load_weights(weights)
    except (OSError, ValueError) as error:
        raise CannotContinue(f"the weights {weights} cannot be read: {error}") from error
    if len(checkpoint.class_ids) != len(description.classes):
        raise CannotContinue(
            f"the weights {weights} know {len(checkpoint.class_ids)} classes, and {description.model.name} knows "
            f"{len(description.classes)}; name the weights of the served network"
        )
    write_picture(render_filters(checkpoint.network), folder / FILTERS_FILE)
    return f"{folder / FILTERS_FILE} has the filters of {weights}, each on its own scale"
