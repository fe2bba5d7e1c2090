"""`make demo` exports the shipped weights, serves them, and writes a page of what the network saw."""
