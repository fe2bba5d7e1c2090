"""Measures several replicas or workers: scaling, rolling restarts and capacity."""
