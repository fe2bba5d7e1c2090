"""Measures how well the features of each layer tell new classes apart (table 7 and figure 9)."""
