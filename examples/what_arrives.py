"""How far from the client's activations is what the server gets? A probe, and a table of stacks.

    splitlab run --plugin fft-lowpass --probe examples/what_arrives.py:WhatArrives
    python examples/what_arrives.py [STACK ...]

The table is of the first training batch of the images, the model and the weights that ship. By
default it compares the three blocks of fft-lowpass.
"""

import json
import sys
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path

import torch

from splitlab.core import Cut, hookimpl, run

BATCH = 128
BASE = 4 * BATCH * 50 * 64  # bytes of the activations of vit-mini: 50 tokens of 64 numbers
RATIOS = (0.05, 0.1, 0.2)
STACKS = [
    f"fft-lowpass:ratio={ratio},block={block}"
    for ratio in RATIOS
    for block in ("corner", "mirrored", "centred")
]


class WhatArrives:
    """Squared error of what the server gets, over the squares of the activations, in training.

    For both peers in one process: what their instances share is the class's. Where rows or tokens
    are fewer, there is nothing to compare.
    """

    _sent: torch.Tensor
    _error: dict[str, float]

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, None, None]:
        """Remember the activations as the model left them."""
        if cut.training:
            WhatArrives._sent, WhatArrives._error = cut.activations.detach().clone(), {}
        yield

    @hookimpl(wrapper=True)
    def before_server_forward(self, cut: Cut) -> Generator[None, None, None]:
        """Compare with what the stack left of them."""
        yield
        arrived, sent = cut.activations.detach(), WhatArrives._sent
        if cut.training and arrived.shape == sent.shape:
            error = (arrived - sent).square().sum() / sent.square().sum()
            WhatArrives._error = {"error": float(error)}

    @hookimpl
    def metrics(self) -> Mapping[str, float]:
        """Return the error of this step."""
        return WhatArrives._error


def main(stacks: list[str]) -> None:
    """Run one step of each stack and print what it sent and how far that was off."""
    print("| stack | up, of the activations | squared error |")
    print("| --- | --: | --: |")
    for stack in stacks:
        with tempfile.TemporaryDirectory() as folder:
            run(
                plugins=[stack],
                probes=[f"{__file__}:WhatArrives"],
                budget="steps=1",
                batch_size=BATCH,
                evaluate="uncompressed",
                threads=1,
                output=str(Path(folder) / "run"),
            )
            text = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8")
        [step] = [line for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]
        error = step.get("metrics", {}).get("WhatArrives", {}).get("error", float("nan"))
        print(f"| `{stack}` | {step['bytes_up'] / BASE:.4f} | {error:.4f} |")


if __name__ == "__main__":
    main(sys.argv[1:] or STACKS)
