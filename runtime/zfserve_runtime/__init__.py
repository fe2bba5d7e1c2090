"""What the server, the worker and the exporter share; it knows nothing of torch."""

import os

# A call's bytes are to be read by the thread that hands it on, as gRPC did in Python until 1.79, and not by a pool of
# four: the hops between them are a fifth of what a refused call costs (docs/benchmarks.md). gRPC looks at this when it
# is first imported, and will drop it one day, of which a test will tell.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
