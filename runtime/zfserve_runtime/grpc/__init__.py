"""Runs the gRPC server of both processes: calls, statuses, health, listening and shutdown."""
