"""This gRPC context stands for a call whose metadata has arrived and whose request has not."""


class FakeContext:
    """Has the methods of a call's context that read metadata, peer and deadline. The call has no deadline."""

    def __init__(self, *metadata: tuple[str, str], peer: str = "ipv4:10.0.0.1:4711") -> None:
        self._metadata = metadata
        self._peer = peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        return None
