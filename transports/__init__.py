"""Links between the two peers, named in ``registry.toml`` and loaded like a stranger's."""
