"""A fuzzer for the image decoders. `python -m tools.fuzz` runs it; docs/security.md records its runs."""
