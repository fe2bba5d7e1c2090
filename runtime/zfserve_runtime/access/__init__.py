"""Access control: TLS, tokens and permissions."""
