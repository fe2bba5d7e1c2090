"""Engines on OpenVINO, on the CPU."""
