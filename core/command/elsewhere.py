"""What users type who know other trainers, and what it is called here."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from splitlab.core.catalogue.tables import OPTION, entries
from splitlab.core.runs.config import Config, flag

__all__ = ["mistyped"]

# By what is typed here, with the value that was given: what others call it. Names are compared
# without their dashes and underscores.
_ELSEWHERE = {
    "--budget steps={}": "max-steps steps num-steps total-steps iterations iters max-iters n-steps",
    "--budget epochs={}": "epochs epoch num-epochs max-epochs n-epochs num-train-epochs",
    "--budget bytes={}": "bytes max-bytes communication-budget",
    "--lr {}": "learning-rate learningrate base-lr",
    "--batch-size {}": "bs batch batchsize train-batch-size per-device-train-batch-size b",
    "--data-dir {}": "data-path data-folder dataroot root train-dir imagenet image-folder",
    "--dataset {}": "data-set dataset-name",
    "--optimizer {}": "opt optim",
    "--weight-decay {}": "wd decay",
    "--lr-schedule {}": "sched scheduler lr-scheduler lr-scheduler-type lr-sched lr-policy",
    "--warmup {}": "warmup-steps warmup-ratio warmup-t warmup-epochs",
    "--clip-norm {}": "clip-grad max-grad-norm grad-clip gradient-clip-val clip-grad-norm",
    "--accumulate {}": "grad-accum-steps gradient-accumulation-steps accumulate-grad-batches",
    "--label-smoothing {}": "smoothing label-smoothing-factor",
    "--drop-path {}": "drop-path-rate stochastic-depth",
    "--ema {}": "model-ema-decay ema-decay",
    "--mixup {}": "mixup-alpha mix-up",
    "--train {}": "freeze trainable finetune",
    "--plugin {}": "method compression compressor codec stack plugins",
    "--plugin NAME:ratio={}": "ratio compression-ratio keep-ratio",
    "--plugin NAME:bits={}": "bits num-bits bit-width",
    "--probe {}": "probes callback",
    "--model {}": "arch architecture backbone net network model-name",
    "--cut {}": "split split-layer cut-layer split-point split-at cut-at",
    "--image-size {}": "img-size input-size resolution imgsz",
    "--pretrained": "use-pretrained",
    "--weights {}": "checkpoint initial-checkpoint load-weights ckpt",
    "--device cuda": "gpu gpus cuda use-cuda",
    "--device cpu": "cpu no-cuda no-gpu",
    "--transport {}": "backend dist-backend protocol",
    "--address SCHEME://HOST:PORT": "host port addr bind listen ip",
    "--tls-cert {}": "cert certfile ssl-cert ssl-certfile tls-certificate",
    "--tls-key {}": "keyfile ssl-key ssl-keyfile",
    "--tls-ca {}": "ca cafile cacert ssl-ca ssl-ca-certs tls-cacert",
    "--secret-file {}": "secret token password auth-token",
    "--output {}": "output-dir out-dir save-dir save-path log-dir run-dir outdir",
    "--resume {}": "resume-from resume-from-checkpoint continue",
    "--workers {}": "num-workers data-workers",
    "--threads {}": "num-threads cpu-threads",
    "--seed {}": "random-seed manual-seed",
    "--seeds {}": "num-seeds repeats n-seeds",
    "--classes {}": "num-classes n-classes nb-classes",
    "--eval-every {}": "eval-steps eval-interval eval-freq validate-every",
    "--checkpoint-every {}": "save-steps save-every save-interval checkpoint-interval",
    "--augment {}": "augmentation aa auto-augment",
}


def mistyped(parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    """Return in a line what is wrong with words that a command does not take, and what it takes.

    Args:
        parser: of the command.
        words: as they were left over, in their order; the first one is explained.
    """
    first, *rest = words
    if not first.startswith("-"):
        return f"unexpected argument {first!r}{_as_option(parser, first)}"
    name, equals, value = first.partition("=")
    if not equals:
        value = rest[0] if rest and not rest[0].startswith("-") else ""
    known = [text for action in parser._actions for text in action.option_strings]
    return f"unknown option {name}{_nearest(name, value, known)}"


def _nearest(name: str, value: str, known: Sequence[str]) -> str:
    bare = _bare(name)
    same = next((option for option in known if _bare(option) == bare), None)
    if same is not None:
        return f" (did you mean {same}?)"
    for here, others in _ELSEWHERE.items():
        if bare in map(_bare, others.split()) and here.split()[0] in known:
            return f"; use {here.format(value or '…')}"
    if name in ("--plugin", "--quiet", *map(flag, Config.__dataclass_fields__)):
        return ": other commands take it, this one does not"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def _as_option(parser: argparse.ArgumentParser, word: str) -> str:
    """Say which option takes a name of the catalogue that stands alone."""
    if "://" in word and "--address" in parser._option_string_actions:
        return f"; use --address {word}"
    name = word.partition(":")[0].partition("+")[0]
    for kind, option in OPTION.items():
        if name in entries(kind) and option in parser._option_string_actions:
            return f"; use {option} {word}"
    return ""


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
