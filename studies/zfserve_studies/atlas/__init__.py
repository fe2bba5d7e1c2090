"""Finds and draws the photos that excite each feature map of a layer most (figures 2 and 6 of the paper)."""
