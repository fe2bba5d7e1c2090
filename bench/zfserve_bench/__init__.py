"""Runs benchmarks. Each prints a ratio against its limit. `zfserve bench` calls them."""
