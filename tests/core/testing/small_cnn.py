"""A network with batch norm and kinks that trains in milliseconds: what is no transformer."""

from __future__ import annotations

from torch import nn

from splitlab.core import Segments


def small_cnn(*, classes: int, channels: int = 1) -> Segments:
    """Grey images of 16 pixels become 4 x 4 places of width 32."""
    stem = nn.Sequential(nn.Conv2d(channels, 32, 4, stride=4), nn.BatchNorm2d(32), nn.ReLU())
    stage = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))
    return Segments([stem, stage, head], channels=channels, image_size=16)


def vectors(*, classes: int) -> Segments:
    """What crosses the link is one vector for every sample."""
    stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh())
    return Segments([stem, nn.Linear(24, classes)], channels=1, image_size=8)


def one_place(*, classes: int) -> Segments:
    """Batch norm of one value per channel and sample, which cannot train on a single sample."""
    stem = nn.Sequential(nn.Conv2d(1, 16, 4, stride=4), nn.ReLU())
    stage = nn.Sequential(nn.Conv2d(16, 16, 2), nn.BatchNorm2d(16), nn.ReLU())
    head = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    return Segments([stem, stage, head], channels=1, image_size=8)
