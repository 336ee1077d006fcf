"""Pre-train the embedded ViT: self-supervised rotation prediction on Fashion-MNIST.

    python make_vit_mini_weights.py --data-dir FOLDER

The network tells by how many quarter turns an image was rotated (Gidaris et al., "Unsupervised
Representation Learning by Predicting Image Rotations", ICLR 2018). No label is read, and the 6,000
training images of the embedded data set are left out, so fine-tuning on them is a fair stand-in
for fine-tuning from ImageNet weights. Writes `vit_mini.safetensors` without the classifier head;
takes about ten minutes on two cores. FOLDER: see `make_fashion_mnist_mini.py`, which runs first.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from splitlab.core.data.idx import read_idx

ASSETS = Path(__file__).parent
SEED = 0
EPOCHS = 5
BATCH = 128
PEAK_LEARNING_RATE = 1e-3
MEAN, STD = 0.2860, 0.3530  # as [datasets.fashion-mnist-mini] in registry.toml
ORIGINAL_IMAGES = 60_000


def pretraining_indices() -> torch.Tensor:
    """Positions in the original training split that are not in the embedded data set: (54000,)."""
    embedded = pq.read_table(ASSETS / "fashion_mnist_mini-train.parquet", columns=["index"])
    left = torch.ones(ORIGINAL_IMAGES, dtype=torch.bool)
    left[torch.tensor(embedded["index"].to_pylist())] = False
    return left.nonzero().flatten()


def build_model() -> VisionTransformer:
    """The embedded ViT, with one class per rotation."""
    return VisionTransformer(
        img_size=28,
        patch_size=4,
        in_chans=1,
        embed_dim=64,
        depth=6,
        num_heads=4,
        num_classes=4,
    )


def rotated(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate uint8 images (B, 28, 28) by `turns` (B,) quarter turns; normalised (B, 1, 28, 28)."""
    out = torch.empty_like(images)
    for quarter in range(4):
        rows = turns == quarter
        out[rows] = torch.rot90(images[rows], quarter, dims=(1, 2))
    return ((out / 255 - MEAN) / STD).unsqueeze(1)


def train(model: nn.Module, images: torch.Tensor) -> None:
    """Train in place on random rotations of `images` (N, 28, 28)."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.05)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LEARNING_RATE, total_steps=EPOCHS * steps
    )
    started = time.monotonic()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        correct = 0
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            turns = torch.randint(4, (BATCH,), generator=generator)
            logits = model(rotated(images[rows], turns))
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(logits, turns))
            optimizer.step()
            schedule.step()
            correct += int((logits.argmax(1) == turns).sum())
        accuracy = correct / (steps * BATCH)
        elapsed = time.monotonic() - started
        print(f"epoch {epoch + 1}: accuracy {accuracy:.4f}, {elapsed:.0f} s", flush=True)


@torch.inference_mode()
def rotation_accuracy(model: nn.Module, images: torch.Tensor) -> float:
    """Fraction of right answers over all four rotations of `images` (N, 28, 28)."""
    model.eval()
    correct = 0
    for start in range(0, len(images), 500):
        batch = images[start : start + 500]
        for quarter in range(4):
            turns = torch.full((len(batch),), quarter)
            correct += int((model(rotated(batch, turns)).argmax(1) == quarter).sum())
    return correct / (4 * len(images))


def main() -> None:
    """Train, measure on the original test images, and save everything but the head."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the IDX files")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    train_file, test_file = (
        next(iter(sorted(arguments.data_dir.glob(f"{prefix}-images-idx3-ubyte*"))))
        for prefix in ("train", "t10k")
    )
    model = build_model()
    train(model, read_idx(train_file)[pretraining_indices()])
    accuracy = rotation_accuracy(model, read_idx(test_file))
    print(f"held-out rotation accuracy: {accuracy:.4f}")

    weights = {name: w for name, w in model.state_dict().items() if not name.startswith("head.")}
    about = {
        "format": "pt",
        "model": "timm VisionTransformer(img_size=28, patch_size=4, in_chans=1, embed_dim=64, "
        "depth=6, num_heads=4), without head",
        "training": f"rotation prediction, {EPOCHS} epochs of the 54,000 Fashion-MNIST training "
        "images that are not in fashion_mnist_mini; no labels",
        "input": f"28 x 28 grey, mean {MEAN}, std {STD}",
        "rotation_accuracy": f"{accuracy:.4f} on the 10,000 original test images",
        "made_by": Path(__file__).name,
        "licence": "Apache-2.0 (weights); training images: Fashion-MNIST, MIT",
    }
    path = ASSETS / "vit_mini.safetensors"
    save_file(weights, path, metadata=about)
    path.chmod(0o644)  # safetensors leaves it readable for its owner alone
    print(f"{path.name}: {path.stat().st_size:,} bytes, {len(weights)} tensors")


if __name__ == "__main__":
    main()
