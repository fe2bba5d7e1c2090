"""Defines the errors of importing and running a graph."""


class GraphError(ValueError):
    """The file cannot be used as a network. The message is one sentence that says what to do."""


class UnsupportedNode(ValueError):
    """A pass has to go through a node whose operation is not in the table. The message names both."""
