"""The command line. It calls the service through `zfserve`, and reaches every other room by name."""
