"""Make the embedded data set: a class-balanced 6,000 / 1,000 subset of Fashion-MNIST as Parquet.

    python make_fashion_mnist_mini.py --data-dir FOLDER

FOLDER holds the four IDX files of Fashion-MNIST (MIT licence), plain or gzipped; the Debian package
dataset-fashion-mnist installs them. The subset is drawn from the original splits, training from
training and test from test. The column `index` keeps each image's position in its original split,
so that `make_vit_mini_weights.py` can leave these images out of pre-training.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from splitlab.core.data.idx import read_idx

ASSETS = Path(__file__).parent
SEED = 0
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SPLITS = {"train": ("train", 6_000), "test": ("t10k", 1_000)}  # our name: (IDX prefix, images)


def read_split(folder: Path, prefix: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Read one original split: images (N, 28, 28) and class ids (N,), both uint8."""
    images, labels = (
        next(path for path in sorted(folder.glob(f"{prefix}-{kind}*")) if path.is_file())
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    return read_idx(images), read_idx(labels)


def balanced_subset(labels: torch.Tensor, size: int) -> torch.Tensor:
    """Draw `size` positions with equally many of each class; ascending, fixed by SEED."""
    generator = torch.Generator().manual_seed(SEED)
    per_class = size // len(CLASSES)
    drawn = []
    for class_id in range(len(CLASSES)):
        positions = (labels == class_id).nonzero().flatten()
        drawn.append(positions[torch.randperm(len(positions), generator=generator)[:per_class]])
    return torch.cat(drawn).sort().values


def encode_png(image: torch.Tensor) -> bytes:
    """Encode one (28, 28) uint8 image, losslessly and as small as Pillow can."""
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def make_table(images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor) -> pa.Table:
    """Build the Parquet table; its schema metadata tells `datasets` the feature types."""
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": CLASSES},
        "index": {"_type": "Value", "dtype": "int32"},
    }
    schema = pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "label": pa.int64(),
            "index": pa.int32(),
        },
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    columns = {
        "image": [{"bytes": encode_png(images[i]), "path": None} for i in index.tolist()],
        "label": labels[index].tolist(),
        "index": index.tolist(),
    }
    return pa.table(columns, schema=schema)


def main() -> None:
    """Write both Parquet files beside this script and print what they hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the IDX files")
    folder: Path = parser.parse_args().data_dir
    for split, (prefix, size) in SPLITS.items():
        images, labels = read_split(folder, prefix)
        index = balanced_subset(labels, size)
        path = ASSETS / f"fashion_mnist_mini-{split}.parquet"
        pq.write_table(make_table(images, labels, index), path, compression="zstd")
        counts = torch.bincount(labels[index].long()).tolist()
        print(f"{path.name}: {path.stat().st_size:,} bytes, images by class {counts}")


if __name__ == "__main__":
    main()
