"""Stores compiled TensorRT engines in a folder, and finds those that may be used."""
