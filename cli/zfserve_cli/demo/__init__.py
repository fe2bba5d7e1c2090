"""`make demo` exports the shipped weights, serves them, and writes a page that shows what the network saw."""
