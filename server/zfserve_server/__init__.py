"""The front: decode, batch, run the engine, answer; projections go on to the worker. Never imports torch."""
