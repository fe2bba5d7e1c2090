"""Batching: requests that wait together share one run of the engine."""
