"""Holds the worker: the process that computes projections with PyTorch and serves them to servers over gRPC."""
