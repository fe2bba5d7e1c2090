"""Holds the two gRPC services, and the classification pipeline that both call."""
