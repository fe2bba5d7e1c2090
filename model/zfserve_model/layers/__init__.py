"""Chooses and names the layers of a network, and computes which pixels a unit sees."""
