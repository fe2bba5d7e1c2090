"""Labelled pictures made with Pillow alone; used by the client and by the model room."""
