"""Defines the default ports. `zfserve serve` listens on them, and clients call them."""

SERVICE_PORT = 8500
METRICS_PORT = 9500
