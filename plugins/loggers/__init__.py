"""Loggers that ship: what the numbers of a run are sent to, named in ``registry.toml``."""
