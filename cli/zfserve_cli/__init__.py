"""The command line. Its commands call the service through `zfserve`. It finds the commands of other rooms by name."""
