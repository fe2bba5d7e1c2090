"""Batching groups waiting images, so that several of them share one run of the engine."""
