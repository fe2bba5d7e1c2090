"""Controls access: TLS, tokens, callers and permissions."""
