"""Defines the keys of gRPC metadata that clients and servers exchange. This module imports only typing."""

from typing import Literal

REQUEST_ID_KEY = "x-request-id"
"""A request carries the id that its client chose. The trailing metadata of every answer carry the id of the request."""

CLIENT_ID_KEY = "x-client-id"
"""A request carries an id of its client. Requests with the same id share one part of a full queue. The id has at most
`limits.MAX_CLIENT_ID_LENGTH` characters."""

PRIORITY_KEY = "x-priority"
"""A request carries a `Priority`. Without this key it is interactive."""

Priority = Literal["interactive", "bulk"]
"""A busy service answers "interactive" calls before "bulk" calls."""

AUTHORIZATION_KEY = "authorization"
"""A request carries `Bearer TOKEN` (RFC 6750)."""

STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""The trailing metadata of an error carry a google.rpc.Status with its details."""

RETRY_PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""The trailing metadata of an error carry the milliseconds before gRPC's own retries try again (gRFC A6)."""

PREVIOUS_ATTEMPTS_KEY = "grpc-previous-rpc-attempts"
"""A request carries the number of earlier attempts by gRPC's own retries (gRFC A6). The first attempt does not have
this key."""
