"""The few calls of CUDA that engines on an NVIDIA GPU need."""
