"""Sends out telemetry: logs, metrics and traces."""
