"""Builds the container images without Docker, and tries them. `python -m tools.images` runs it."""
