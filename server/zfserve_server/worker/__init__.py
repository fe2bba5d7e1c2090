"""Supervises the companion worker as a process, keeps the gRPC channel to it, and calls it."""
