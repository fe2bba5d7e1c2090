"""Builds and runs engines on TensorRT and TensorRT for RTX."""
