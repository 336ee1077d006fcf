"""A whole run: plan, loop, server, run folder, checkpoints."""
