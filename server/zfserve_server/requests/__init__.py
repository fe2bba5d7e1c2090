"""Requests: each servicer converts messages and hands them to the pipeline."""
