"""Defines networks as graphs over a closed table of operations, and runs them in PyTorch."""
