"""Holds what all engines on an NVIDIA GPU share: the GPU's properties, CUDA streams, CUDA errors and batch sizes."""
