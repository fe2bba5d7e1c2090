"""From checkpoint to bundle, and what the bundle is worth."""
