"""Measures without a service: engines on CPU and GPU, image decoding, and projections in the process itself."""
