"""Moves, scales, turns, flips and recolours photos (Zeiler & Fergus, figure 5): the study, and the claims."""
