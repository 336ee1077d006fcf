"""What plugins, links, models and probes are written against. Imports torch and pluggy only."""
