"""splitlab: a laboratory for split-learning compression.

What plugin authors and notebooks use is in `splitlab.core`; this package's root holds the version
and stays free of imports.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
