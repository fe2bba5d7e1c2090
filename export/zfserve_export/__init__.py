"""This room turns a network into a bundle, and measures what the bundle is worth."""
