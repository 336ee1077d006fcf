from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform, transforms

from splitlab.core import ConfigError
from splitlab.core.data.policies import timm_augmentation

POLICIES = [
    "rand-m9-mstd0.5-inc1",
    "rand-m5-n3-p0.7-mmax8",
    "rand-m9-tweights",
    "augmix-m3-w2-d2",
    "augmix",
    "original-mstd0.5",
    "v0r",
    "3a",
    "none",
    "none,scale=0.5,ratio=0.9,hflip=1,vflip=1,color_jitter=0",
]


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    draws = np.random.default_rng(0)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(draws.integers(0, 255, shape, dtype=np.uint8))


def augmented(text: str, sample: int = 0, mode: str = "RGB") -> Image.Image:
    draws = torch.Generator().manual_seed(sample)
    return timm_augmentation(text)(24)(picture(mode), draws)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("text", POLICIES)
def test_a_sample_decides_its_image_and_nothing_else_does(text: str, mode: str) -> None:
    one = augmented(text, mode=mode)  # global random state is watched by all tests of this folder
    assert augmented(text, mode=mode).tobytes() == one.tobytes()
    assert (one.size, one.mode) == ((24, 24), mode)
    others = {augmented(text, sample, mode).tobytes() for sample in range(4)}
    assert len(others) > 1


@pytest.mark.parametrize("text", POLICIES[:3] + POLICIES[5:7])
def test_it_is_what_timm_makes_of_the_same_draws(text: str) -> None:
    draws = torch.Generator().manual_seed(3)
    ours = timm_augmentation(text)(24)(picture(), draws)
    draws.manual_seed(3)
    seeds = torch.randint(2**32, (2,), generator=draws).tolist()
    steps = create_transform(
        24, is_training=True, auto_augment=text, interpolation="random", separate=True
    )[:2]
    kept = random.getstate(), np.random.get_state()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    try:
        with torch.random.fork_rng():
            torch.set_rng_state(draws.get_state())
            theirs = steps[1](steps[0](picture()))
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
    assert theirs.tobytes() == ours.tobytes()


def test_threads_draw_alike() -> None:
    augment = timm_augmentation(POLICIES[0])(24)

    def one(sample: int) -> bytes:
        return augment(picture(), torch.Generator().manual_seed(sample)).tobytes()

    alone = [one(sample) for sample in range(24)]
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(one, range(24))] == alone


def test_timm_draws_from_global_state_where_nobody_augments() -> None:
    augmented(POLICIES[0])
    assert transforms.random.uniform is random.uniform
    assert auto_augment.np.random.choice is np.random.choice
    assert auto_augment.np.float32 is np.float32


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' is no policy; none, or one of rand, augmix"),
        ("rnd-m9", "'rnd-m9' is no policy"),
        ("rand-mx", "'rand-mx' is no policy"),
        ("rand-m9-bogus", "is no policy"),
        ("rand-q9", "timm cannot read this policy"),
        ("augmix-n2", "timm cannot read this policy"),
        ("original-m9", "timm cannot read this policy"),
        ("rand-m9,scal=1", "unknown setting 'scal'; allowed: scale, ratio, hflip"),
        ("none,scale=0", "scale=0 is not allowed; from 0.001 to 1"),
        ("none,hflip=x", "hflip=x is not allowed; from 0 to 1"),
        ("none,hflip=nan", "hflip=nan is not allowed"),
    ],
)
def test_what_timm_does_not_know_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        timm_augmentation(text)


def test_nobody_else_pays_for_timm() -> None:
    program = "import splitlab.core.data.load, sys; sys.exit('timm.data' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert ended.returncode == 0
