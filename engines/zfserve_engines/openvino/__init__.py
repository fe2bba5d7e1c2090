"""Runs networks on OpenVINO, on the CPU."""
