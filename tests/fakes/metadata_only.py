"""A call of which nothing but the metadata has come."""


class MetadataOnly:
    """What is asked of a call; it has no deadline."""

    def __init__(self, *metadata: tuple[str, str], peer: str = "ipv4:10.0.0.1:4711") -> None:
        self._metadata = metadata
        self._peer = peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        return None
