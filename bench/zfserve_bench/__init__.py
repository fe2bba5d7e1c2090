"""Benchmarks: each prints a ratio against its limit. Called by `zfserve bench`."""
