"""Holds the .proto files, the stubs that `make protos` generates from them, and the names that both sides use."""
