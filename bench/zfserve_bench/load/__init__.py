"""Generates load: a process sends calls to a service, in a closed or an open loop.

A benchmark starts the process with `generator.LoadGenerator` and sends it the orders of `protocol`.
"""
