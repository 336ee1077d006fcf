"""Record what a refactoring must not change: losses, frames, accuracies and checkpoints.

    python tests/record.py FILE            write what this checkout does
    python tests/record.py FILE --compare  say where this checkout differs from it; status 1 if so

Numbers are those of one machine: record and compare on the same one, with the same libraries.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from splitlab.core import run
from splitlab.core.catalogue.binding import bind_stack
from splitlab.core.catalogue.tables import ROOT, catalogue
from splitlab.core.testing.couple import Couple
from splitlab.core.testing.subject import TINY, TURNS
from splitlab.core.testing.tiny import thaw
from splitlab.core.wire.encode import encode

torch.set_num_threads(1)

STACKS = [
    *catalogue()["plugins"],
    *catalogue()["stacks"],
    "adc:ratio=0.1,alloc=fifth",
    "adc:heads=max",
    "adc:score_layer=rollout",
    "cast:dtype=fp8_e4m3",
    "powersgd:ratio=0.1,svd=true",
    "c3sl:ratio=0.1,keys=unitary",
    "bottlenet:ratio=0.1,variant=adcrepo",
    "bottlenet:ratio=0.1,variant=fair",
    "bottlenet:cls_bypass=true",
    str(ROOT / "examples/half_precision.py:HalfPrecision"),
    str(ROOT / "examples/feature_energy.py:FeatureEnergy"),
]
RUNS = {
    "none": {},
    "adc": {"plugins": ["adc"]},
    "adc over tcp": {"plugins": ["adc"], "transport": "tcp"},
    "adc-q8 over gloo": {"plugins": ["adc:ratio=0.4", "quantize:bits=8"], "transport": "gloo"},
    "aqsgd": {"plugins": ["aqsgd"]},
    "tome": {"plugins": ["tome"]},
    "bottlenet": {"plugins": ["bottlenet"]},
    "deit, cut 0": {"model": "deit_tiny_patch16_224", "image_size": 32, "cut": 0},
    "deit, cut 12": {"model": "deit_tiny_distilled_patch16_224", "image_size": 32, "cut": 12},
}


def conformance(name: str) -> dict[str, Any]:
    """Train the kit's tiny peers through real frames; digests of every frame, and every loss."""
    frames: list[str] = []

    def carry(message: Any, upward: bool) -> Any:
        raw = b"".join(encode(message).buffers())
        frames.append(f"{len(raw)} {hashlib.sha256(raw).hexdigest()[:16]}")
        return thaw(raw)

    couple = Couple(TINY, bind_stack([name]), carry=carry)
    losses = [
        couple.train(TINY.batch(n), n) if what == "train" else couple.evaluate(TINY.batch(n), n)[1]
        for what, n in TURNS
    ]
    return {"losses": losses, "frames": frames}


def training(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a few real steps; what the run folder holds, without its seconds."""
    small = {"budget": "steps=4", "batch_size": 64, "eval_every": 2, "threads": 1}
    result = run(**small | options, output=str(folder))
    checkpoints = {}
    for path in sorted(folder.rglob("*.safetensors")):
        digest = hashlib.sha256()
        with safe_open(path, framework="pt") as file:
            for key in sorted(file.keys()):
                digest.update(key.encode() + file.get_tensor(key).numpy().tobytes())
        checkpoints[str(path.relative_to(folder))] = digest.hexdigest()[:16]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if record["kind"] != "records"]
    for record in records:
        record.pop("samples", None)  # which older checkouts do not count
    summary = result.summary.as_dict()
    timed = {"version", "images_per_second", "data_share"}
    kept = {key: v for key, v in summary.items() if "seconds" not in key and key not in timed}
    facts = {"records": records, "ledger": result.ledger.counts, "summary": kept}
    return facts | {"checkpoints": checkpoints}


def recorded() -> Iterator[tuple[str, Any]]:
    for name in STACKS:
        yield f"conformance {Path(name).name}", conformance(name)
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, options) in enumerate(RUNS.items()):
            yield f"run {name}", training(options, Path(folder) / str(i))


def main() -> int:
    torch.set_num_threads(1)
    file, compare = Path(sys.argv[1]), "--compare" in sys.argv
    found = {}
    for name, value in recorded():
        found[name] = json.loads(json.dumps(value))
        print(name, flush=True)
    if not compare:
        file.write_text(json.dumps(found, indent=1))
        return 0
    before = json.loads(file.read_text())
    different = [name for name in {**before, **found} if before.get(name) != found.get(name)]
    for name in different:
        was, now = json.dumps(before.get(name)), json.dumps(found.get(name))
        print(f"differs: {name}\n  was {was[:2000]}\n  is  {now[:2000]}")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
