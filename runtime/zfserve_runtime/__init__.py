"""Holds what the server and the worker share: gRPC, access, telemetry, settings and the bundle. Never imports torch."""
