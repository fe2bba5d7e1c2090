"""Explains a network: projections by the deconvnet, and attributions."""
