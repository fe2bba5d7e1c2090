"""Holds the command line. Its commands call the service through `zfserve`. It finds other rooms' commands by name."""
