"""Finds the layers that a study reads, and refuses those that cannot be read. The studies' requests use it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from zfserve_engines.readings.plan import Form, Reading
from zfserve_runtime.bundle import LayerEntry, Manifest
from zfserve_runtime.errors import BundleOutdated, InvalidInput, NotFound
from zfserve_runtime.projection_validation import QUOTED_LENGTH, layer_names

FEATURES = "features"
"""The name of the activations that enter the last linear layer. They are read as maps of one unit."""


@dataclass(frozen=True)
class ReadLayer:
    """Describes a layer whose values a study reads.

    Attributes:
        tensor: the name of its tensor in the graph. Empty for `FEATURES`, which every run of an engine returns.
        channels, height, width: the shape of its output.
    """

    name: str
    tensor: str
    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, layer: LayerEntry) -> Self:
        """Returns a layer of the manifest.

        Raises:
            BundleOutdated: the bundle does not say which tensor of the graph the layer is.
        """
        if not layer.tensor:
            raise BundleOutdated(
                "this model's bundle has schema 1 and does not name the tensors of its layers; "
                "the operator can rewrite it with `zfserve export --upgrade`"
            )
        return cls(layer.name, layer.tensor, layer.channels, layer.height, layer.width)

    @property
    def units(self) -> int:
        """The number of values that the layer has for one photo."""
        return self.channels * self.height * self.width

    def reading(self, form: Form) -> Reading:
        """Returns how an engine reads the layer."""
        return Reading(self.tensor, self.channels, self.height, self.width, form)


def find_layer(name: str, manifest: Manifest, field: str = "layer") -> ReadLayer:
    """Returns the layer that `name` selects: by its own name, by the name of its stage, or as "last".

    Raises:
        NotFound: the model has no such layer.
        BundleOutdated: the layer cannot be read.
    """
    if layer := manifest.resolve_layer(name):
        return ReadLayer.of(layer)
    quoted = repr(name[:QUOTED_LENGTH])
    if manifest.layers:
        raise NotFound(f"there is no layer {quoted}; choose {layer_names(manifest)}", field=field)
    reason = f": {manifest.projection_obstacle}" if manifest.projection_obstacle else ""
    raise NotFound(f"there is no layer {quoted}, because this model lists no layers{reason}", field=field)


def find_layers(names: Sequence[str], manifest: Manifest, field: str) -> tuple[ReadLayer, ...]:
    """Returns the layers that `names` select, of which each may be `FEATURES`.

    Raises:
        NotFound, BundleOutdated: see `find_layer`.
        InvalidInput: two names select the same layer, or the network has no features.
    """
    layers: list[ReadLayer] = []
    for name in names:
        layer = features_of(manifest, field) if name == FEATURES else find_layer(name, manifest, field)
        if layer in layers:
            raise InvalidInput(f"the request names {layer.name[:QUOTED_LENGTH]} twice; name it once", field=field)
        layers.append(layer)
    return tuple(layers)


def features_of(manifest: Manifest, field: str) -> ReadLayer:
    """Returns the last hidden layer.

    Raises:
        InvalidInput: the network has none.
    """
    if not manifest.feature_width:
        raise InvalidInput(
            f"this network has no {FEATURES}, because it does not end in a linear layer; name a layer", field=field
        )
    return ReadLayer(FEATURES, "", manifest.feature_width, 1, 1)


def default_layer(name: str, manifest: Manifest, default: str, field: str = "layer") -> ReadLayer | None:
    """Returns the layer that `name` selects. Without a name, returns the layer `default`, or None if there is none that
    can be read.

    Raises:
        NotFound, BundleOutdated: see `find_layer`.
    """
    if name:
        return find_layer(name, manifest, field)
    layer = manifest.resolve_layer(default)
    return ReadLayer.of(layer) if layer and layer.tensor else None
