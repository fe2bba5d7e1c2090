"""Load generation: processes that send calls to a service in a closed or an open loop."""
