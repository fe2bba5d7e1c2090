"""Supervises the companion worker, keeps the channel to it, and calls it."""
