"""The companion process: a gRPC service around the deconvnet."""
