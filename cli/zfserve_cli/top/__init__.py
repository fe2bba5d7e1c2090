"""`zfserve top` shows the load, the latency and the batches of a service, live in a terminal."""
