"""Builds graphs from models in ONNX, and computes the fingerprint of a model."""
