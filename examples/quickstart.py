"""Train a split ViT with ADC, and without compression, on the same communication budget.

    python examples/quickstart.py [BUDGET]

The budget is one uncompressed epoch of traffic by default. Prints accuracy and real bytes of both.
"""

import sys
import tempfile
from pathlib import Path

from splitlab.core import run


def main(budget: str = "nominal=1.0") -> None:
    """Run both and print one line for each."""
    with tempfile.TemporaryDirectory() as folder:
        for plugins in ([], ["adc"]):
            name = "+".join(plugins) or "none"
            result = run(plugins=plugins, budget=budget, output=str(Path(folder) / name))
            summary = result.summary
            megabytes = (summary["bytes_up"] + summary["bytes_down"]) / 1e6
            print(
                f"{name:5} accuracy {summary['accuracy']:.3f} after {summary['steps']} steps, "
                f"{megabytes:.1f} MB, measured ratio {summary['ratio_measured']:.3f}"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
