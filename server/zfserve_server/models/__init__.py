"""Finds, opens, serves and replaces the versions of models."""
