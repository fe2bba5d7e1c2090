"""Measures one service: throughput, latency, start, overload, drain and soak."""
