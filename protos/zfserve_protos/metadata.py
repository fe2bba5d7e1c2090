"""The keys of gRPC metadata that clients and servers exchange. This module imports nothing but typing."""

from typing import Literal

REQUEST_ID_KEY = "x-request-id"
"""In a request: the id that the client chose. In the trailing metadata of every answer: the id of the request."""

CLIENT_ID_KEY = "x-client-id"
"""In a request: who shares a contended queue as one client. At most `limits.MAX_CLIENT_ID_LENGTH` characters."""

PRIORITY_KEY = "x-priority"
"""In a request: a `Priority`. Without this key a request is interactive."""

Priority = Literal["interactive", "bulk"]
"""A busy service answers "interactive" calls before "bulk" calls."""

AUTHORIZATION_KEY = "authorization"
"""In a request: `Bearer TOKEN` (RFC 6750)."""

STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""In the trailing metadata of an error: a google.rpc.Status with its details."""

RETRY_PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""In the trailing metadata of an error: the delay before gRPC's own retries try again (gRFC A6)."""

PREVIOUS_ATTEMPTS_KEY = "grpc-previous-rpc-attempts"
"""In a request: how often gRPC's own retries have made this call before (gRFC A6). The first attempt lacks it."""
