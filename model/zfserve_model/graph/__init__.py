"""Reads networks in ONNX into graphs that PyTorch runs."""
