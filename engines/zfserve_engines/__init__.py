"""Engines run a bundle's network. This room also decodes images and checks golden inputs."""
