"""Programs for developers of zfserve. They run from a checkout and are not installed."""
