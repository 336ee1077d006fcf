"""Words that the messages of this room share; among them, which forms of data are read."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["ACCEPTED", "FORMS", "brief", "listing", "plain"]

FORMS = (
    ("IDX files", "train-images-idx3-ubyte, train-labels-idx1-ubyte, and the same with t10k-"),
    ("save_to_disk folders", "what a DatasetDict of Hugging Face's datasets wrote"),
    ("Parquet files", "train*.parquet or train/*.parquet, and the same with test; also in data/"),
    ("NumPy archives", "one .npz of x_train, y_train, x_test, y_test or train_images, …"),
    ("image folders", "train/CLASS/x.png and test/CLASS/x.png, at any depth in CLASS/"),
    ("data without parts", "FILE.parquet, FILE.npz or CLASS/x.png, with --test-share 0.2"),
)
"""What ``--data-dir`` takes: the name of the form, and what lies in the folder."""

ACCEPTED = "accepted are " + "; ".join(f"{name} ({looks})" for name, looks in FORMS)


def brief(error: object) -> str:
    """Return the first line of an error, of bounded length, with its type if it says nothing."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= 160 else line[:157] + "..."


def listing(names: Collection[str]) -> str:
    """Return the first few names, sorted, and how many more there are."""
    shown = ", ".join(map(plain, sorted(names)[:8]))
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def plain(name: object) -> str:
    """Return a name of a file or class in characters that fit in a line and can be printed.

    >>> plain("a\\nb")
    'a\\\\nb'
    """
    text = str(name)
    return text if text.isprintable() else repr(text)[1:-1]
