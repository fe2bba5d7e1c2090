"""Fuzzes the image decoders. `python -m tools.fuzz` runs it; docs/security.md records its runs."""
