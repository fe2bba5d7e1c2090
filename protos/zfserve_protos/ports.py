"""The ports on which `zfserve serve` listens by default, and which clients call by default."""

SERVICE_PORT = 8500
METRICS_PORT = 9500
