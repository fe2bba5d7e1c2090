"""Readings are extra outputs of a bundle's graph: what its layers compute. An ablation is an extra input of it."""
