"""The gRPC server that both processes run: calls, statuses, health, start and stop."""
