"""Compression methods, one file each, named in ``registry.toml`` and loaded like a stranger's."""
