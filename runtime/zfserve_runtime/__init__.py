"""What the server, the worker and the exporter share; it knows nothing of torch."""
