"""Finds photo files, and draws contact sheets. It needs Pillow only, and every room may import it."""
