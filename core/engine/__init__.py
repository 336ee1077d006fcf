"""One training step: two peers that take a message and return a message."""
