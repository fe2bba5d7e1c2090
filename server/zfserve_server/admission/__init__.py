"""Admission control decides which requests the server accepts."""
