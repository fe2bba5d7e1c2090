"""The server process classifies images and forwards projections to the worker. It never imports torch."""
