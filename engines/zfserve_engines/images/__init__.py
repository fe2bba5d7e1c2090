"""Decodes image files and resizes photos to the input of a network."""
