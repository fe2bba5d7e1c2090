"""Measures how similarly a network changes if the same part of different photos is masked (table 1)."""
