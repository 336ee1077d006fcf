"""Messages as frames, and what frames weigh: no input, no output, no model."""
