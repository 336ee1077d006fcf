"""A model of one's own in one file: three convolutional stages and a head.

    splitlab run --model examples/small_cnn.py:small_cnn --plugin quantize:bits=8
    splitlab run --model examples/small_cnn.py:small_cnn:width=64 --cut 0

The client runs the first two stages if no --cut is given.
"""

from torch import nn

from splitlab.core import ConfigError, Segments


def small_cnn(
    *, classes: int, image_size: int = 28, channels: int = 1, width: int = 16
) -> Segments:
    """A small CNN with batch norm.

    Args:
        classes: C, width of the head; the data say how many.
        image_size: height and width of an image, in pixels.
        channels: of an image.
        width: of the first stage; every stage has twice the width of the one before.
    """
    if width < 1:
        raise ConfigError(f"width={width} is not allowed; 1 or more")
    widths = [channels, width, 2 * width, 4 * width]
    stages = [_stage(*widths[i : i + 2]) for i in range(3)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    return Segments(
        [*stages, head],
        channels=channels,
        image_size=image_size,
        default_cut=1,
        cut_noun="stages",
    )


def _stage(inputs: int, outputs: int) -> nn.Module:
    """Return a stage that halves height and width."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
