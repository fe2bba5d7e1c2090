"""The client of the service, sync and async, and the command line that calls it."""
