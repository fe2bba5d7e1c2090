"""This room turns a checkpoint into a bundle, and measures what the bundle is worth."""
