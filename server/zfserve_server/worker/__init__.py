"""The companion worker as the server sees it: its process, its channel, its calls."""
