"""Measures the accuracy of a network with feature maps replaced by a constant."""
