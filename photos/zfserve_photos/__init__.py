"""Finds photo files, and draws contact sheets, heatmaps and text. It needs Pillow only. Every room may import it."""
