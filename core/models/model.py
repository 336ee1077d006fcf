"""The Vision Transformer, cut in two: the only module that knows timm.

Nothing of timm is re-typed. Both halves run timm's own submodules in timm's order; what belongs to
the other half is moved to the meta device, where it has no numbers and takes no memory.

Shapes: B samples, N tokens (P special ones first), D width, H heads, C classes.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from splitlab.core.catalogue.registry import ROOT, catalogue
from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.contract.peer import AttentionRequest
from splitlab.core.contract.seeding import isolated_rng

__all__ = [
    "ClientHalf",
    "ServerHalf",
    "build_model",
    "class_attention",
    "default_cut",
    "fingerprint",
    "input_shape",
    "list_models",
]

_SERVER_PARTS = ("norm", "fc_norm", "attn_pool", "head_drop", "head", "head_dist")


def list_models() -> list[str]:
    """Return the names of all timm models that are built as a VisionTransformer."""
    modules = ("vision_transformer", "deit")
    return sorted(name for module in modules for name in timm.list_models(module=module))


def default_cut(model: str) -> int:
    """Return the number of client blocks if the user names none: the paper's 3."""
    return int(catalogue()["models"].get(model, {}).get("cut", 3))


def input_shape(model: str, image_size: int | None = None) -> tuple[int, int]:
    """Return (channels, height = width in pixels) that the model takes.

    Raises:
        ConfigError: unknown name, or a model made for images that are not square.
    """
    own = catalogue()["models"].get(model)
    if own is not None:
        channels, height, width = own["args"]["in_chans"], *2 * (own["args"]["img_size"],)
    else:
        _check_name(model)
        made_for = timm.get_pretrained_cfg(model)
        channels, height, width = made_for.input_size if made_for else (3, 224, 224)
    if image_size is None and height != width:
        raise ConfigError(f"model {model!r} takes {height}x{width} images; choose --image-size")
    return int(channels), int(image_size or height)


def build_model(
    name: str,
    *,
    classes: int,
    seed: int,
    image_size: int | None = None,
    pretrained: bool = False,
    weights: str = "default",
) -> VisionTransformer:
    """Build the whole model, the same at both peers for the same arguments.

    Args:
        name: of ``registry.toml``, or any timm VisionTransformer.
        classes: C, width of the new head.
        seed: of the initial numbers; global random state is left as it was.
        image_size: input height and width in pixels; None for the model's own.
        pretrained: take timm's published weights (a download).
        weights: a safetensors file, ``"default"`` for what ships with the model (nothing for a timm
            name), or ``"none"``. A head for another number of classes is left out.

    Raises:
        ConfigError: unknown name, a model that is no VisionTransformer, weights that do not fit or
            cannot be had.
    """
    own = catalogue()["models"].get(name)
    given = image_size is not None and image_size != input_shape(name)[1]
    size = {"img_size": image_size} if given else {}
    with isolated_rng(seed, "model", device=torch.device("cpu")):
        if own is not None:
            if pretrained:
                raise ConfigError(f"timm publishes no weights for {name!r}; leave --pretrained out")
            model: Any = _construct(
                name, VisionTransformer, num_classes=classes, **own["args"] | size
            )
            if weights == "default":
                weights = str(ROOT / own["weights"])
        else:
            _check_name(name)
            model = _construct(
                name,
                timm.create_model,
                name,
                pretrained=pretrained,
                num_classes=classes,
                **size,
            )
    if not isinstance(model, VisionTransformer):
        raise ConfigError(
            f"model {name!r} is a {type(model).__name__}, not a timm VisionTransformer; "
            "`splitlab models` lists those that can be cut"
        )
    if weights not in ("default", "none"):
        _load_weights(model, Path(weights))
    return model


def _check_name(name: str) -> None:
    if not timm.is_model(name.partition(".")[0]):
        near = [own for own in list_models() if own.startswith(name[:4])] or list_models()[:8]
        known = [*catalogue()["models"], *near]
        raise unknown_name("model", name, known, "; `splitlab models` lists all")


def _construct(name: str, factory: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return factory(*args, **kwargs)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        way_out = "; download the file elsewhere and pass it with --weights FILE"
        raise ConfigError(
            f"model {name!r} cannot be built: {reason[:300]}"
            + (way_out if kwargs.get("pretrained") else "")
        ) from error


def _load_weights(model: VisionTransformer, path: Path) -> None:
    from safetensors.torch import load_file

    if not path.is_file():
        raise ConfigError(
            f"--weights {path}: no such file; give a safetensors file, default or none"
        )
    try:
        state = checkpoint_filter_fn(load_file(path), model)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"--weights {path}: not a safetensors file of a ViT ({reason})"
        ) from error
    target = model.state_dict()
    heads = ("head.", "head_dist.")
    fitting = {
        key: value
        for key, value in state.items()
        if not (key.startswith(heads) and (key not in target or target[key].shape != value.shape))
    }
    wrong = sorted(
        key
        for key in target.keys() | fitting.keys()
        if not (key in fitting and key in target and target[key].shape == fitting[key].shape)
        and not (key.startswith(heads) and key not in fitting)
    )
    if wrong:
        raise ConfigError(
            f"--weights {path} does not fit the model: {len(wrong)} tensors missing, unexpected or "
            f"of another shape, first {wrong[0]!r}; give weights of the same model"
        )
    model.load_state_dict(fitting, strict=False)


def fingerprint(model: nn.Module) -> str:
    """Return a short hash of all names, shapes, dtypes and numbers of the model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()[:16]


class _Half:
    """One side of a cut VisionTransformer.

    Attributes:
        vit: timm's model; the other half's parameters and buffers are on the meta device.
        cut: how many blocks the client runs.
    """

    _is_client: bool

    def __init__(self, vit: VisionTransformer, cut: int, device: torch.device) -> None:
        depth = len(vit.blocks)
        if not 0 <= cut <= depth:
            raise ConfigError(f"--cut {cut} is outside the model; allowed: 0 to {depth}")
        self.vit = vit
        self.cut = cut
        named = itertools.chain(vit.named_parameters(), vit.named_buffers())
        for name, tensor in list(named):
            owned = _belongs_to_client(name, cut) is self._is_client
            moved = tensor.detach().to(device if owned else "meta")
            if isinstance(tensor, nn.Parameter):
                moved = nn.Parameter(moved, requires_grad=tensor.requires_grad)
            path, _, leaf = name.rpartition(".")
            setattr(vit.get_submodule(path), leaf, moved)

    @property
    def tokens(self) -> int:
        """N: special tokens and patches of one sample."""
        return int(self.vit.patch_embed.num_patches) + self.prefix_tokens

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patches (down, across); None if the patches are no such grid."""
        grid = getattr(self.vit.patch_embed, "grid_size", None)
        if not grid or grid[0] * grid[1] + self.prefix_tokens != self.tokens:
            return None
        return int(grid[0]), int(grid[1])

    @property
    def prefix_tokens(self) -> int:
        """P: class, distillation and register tokens, which stand in front."""
        return int(self.vit.num_prefix_tokens)

    @property
    def class_token(self) -> bool:
        """Whether the first special token is a class token."""
        return self.vit.cls_token is not None

    @property
    def width(self) -> int:
        """D: width of a token."""
        return int(self.vit.embed_dim)

    @property
    def depth(self) -> int:
        """Blocks of the whole model."""
        return len(self.vit.blocks)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield this half's own parameters under timm's names."""
        return ((name, p) for name, p in self.vit.named_parameters() if not p.is_meta)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return this half's own tensors under timm's names."""
        return {name: t for name, t in self.vit.state_dict().items() if not t.is_meta}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Load what `state_dict` returned; `ConfigError` if it is of another model or cut."""
        own = {name: tensor.shape for name, tensor in self.state_dict().items()}
        given = {name: tensor.shape for name, tensor in state.items()}
        odd = sorted(n for n in own.keys() | given.keys() if own.get(n) != given.get(n))
        if odd:
            raise ConfigError(
                f"the checkpoint is of another model or cut: {len(odd)} tensors are missing, "
                f"unexpected or of another shape, first {odd[0]!r}"
            )
        self.vit.load_state_dict(state, strict=False)

    def train(self, mode: bool) -> None:
        """Switch dropout and the like on or off."""
        self.vit.train(mode)


class ClientHalf(_Half):
    """Images to activations: embedding, position, the first ``cut`` blocks."""

    _is_client = True

    def __init__(self, vit: VisionTransformer, cut: int, device: torch.device) -> None:
        super().__init__(vit, cut, device)
        self._blocks = vit.blocks[:cut]
        self._attention: _AttentionProbe | None = None
        self._keys: _AttentionProbe | None = None

    def measure_attention(self, request: AttentionRequest) -> None:
        """Make every `forward` return attention too."""
        self._attention = _AttentionProbe(self._blocks, request)

    def measure_keys(self) -> None:
        """Make every `forward` keep attention keys for `keys`."""
        self._keys = _AttentionProbe(self._blocks, AttentionRequest())

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run images (B, channels, height, width).

        Returns:
            Activations (B, N, D), and the class token's attention (B, N) float32, detached, if
            `measure_attention` was called.
        """
        vit = self.vit
        x = vit.patch_embed(images)
        x = vit._pos_embed(x)
        x = vit.patch_drop(x)
        x = vit.norm_pre(x)
        x = self._blocks(x)
        return x, self._attention.read() if self._attention else None

    def keys(self) -> torch.Tensor | None:
        """Return the last block's keys in the `forward` that just ran; None without `measure_keys`.

        (B, N, D/H) float32, detached, mean over the H heads.
        """
        return self._keys.read_keys() if self._keys else None


class ServerHalf(_Half):
    """Activations to logits: the other blocks, norm and head."""

    _is_client = False

    def __init__(self, vit: VisionTransformer, cut: int, device: torch.device) -> None:
        super().__init__(vit, cut, device)
        self._blocks = vit.blocks[cut:]

    def forward(
        self, activations: torch.Tensor, token_sizes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run activations (any rows, any tokens, D); returns logits (rows, C).

        Args:
            activations: what arrived, decoded.
            token_sizes: (rows, tokens), more than 0: every block attends to a token as to so many
                equal ones (log sizes are added to the attention logits).

        Raises:
            ConfigError: sizes are given and the model's blocks take no attention mask.
        """
        x = activations
        if token_sizes is None:
            x = self._blocks(x)
        else:
            bias = token_sizes.to(x.dtype).log()[:, None, None, :]
            for block in self._blocks:
                if "attn_mask" not in inspect.signature(block.forward).parameters:
                    raise ConfigError(
                        f"a {type(block).__name__} of this model takes no attention mask, which "
                        "weighing tokens by their size needs; choose another model, or a method "
                        "that sends no token sizes"
                    )
                x = block(x, attn_mask=bias)
        x = self.vit.norm(x)
        logits: torch.Tensor = self.vit.forward_head(x)
        return logits


def _belongs_to_client(name: str, cut: int) -> bool:
    part, _, rest = name.partition(".")
    if part == "blocks":
        return int(rest.partition(".")[0]) < cut
    return part not in _SERVER_PARTS


class _AttentionProbe:
    """Computes attention from the queries and keys that pass by a block's ``attn.qkv`` anyway.

    A forward hook, so timm's fused attention stays on. Only the class token's row is computed,
    N·D multiplications a sample; rollout needs whole maps and costs accordingly.
    """

    def __init__(self, blocks: nn.Sequential, request: AttentionRequest) -> None:
        self._request = request
        self._seen: list[tuple[Any, torch.Tensor]] = []
        watched = blocks if request.layer == "rollout" else blocks[-1:]
        for block in watched:
            attention: Any = getattr(block, "attn", None)
            if not hasattr(attention, "qkv") or not hasattr(attention, "num_heads"):
                raise ConfigError(
                    f"cannot read attention from a {type(block).__name__}: it has no attn.qkv; "
                    "choose another model or a method that needs no attention"
                )
            attention.qkv.register_forward_hook(self._remember(attention))

    def _remember(self, attention: Any) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            self._seen.append((attention, output.detach()))

        return hook

    @torch.no_grad()
    def read(self) -> torch.Tensor:
        """Return (B, N) float32 for the forward pass that just ran."""
        seen, self._seen = self._seen, []
        if self._request.layer == "last":
            [(attention, qkv)] = seen
            return class_attention(attention, qkv, heads=self._request.heads)
        row = None
        for attention, qkv in reversed(seen):
            whole = _attention_rows(attention, qkv, slice(None))
            whole_BNN = whole.mean(1) if self._request.heads == "mean" else whole.amax(1)
            if row is None:
                row = torch.zeros_like(whole_BNN[:, :1])
                row[..., 0] = 1
            row = 0.5 * row + 0.5 * row @ (whole_BNN / whole_BNN.sum(-1, keepdim=True))
        assert row is not None
        return row[:, 0]

    @torch.no_grad()
    def read_keys(self) -> torch.Tensor:
        """Return the keys (B, N, D/H) float32 of the forward pass that just ran."""
        [(attention, qkv)], self._seen = self._seen, []
        B, N, _ = qkv.shape
        key_BNHK = qkv.view(B, N, 3, attention.num_heads, -1)[:, :, 1]
        keys_BNK: torch.Tensor = attention.k_norm(key_BNHK).float().mean(2)
        return keys_BNK


def class_attention(attention: Any, qkv: torch.Tensor, *, heads: str = "mean") -> torch.Tensor:
    """Return how much the class token attends to every token, (B, N) float32, detached.

    Args:
        attention: timm's attention module (heads, scale, query and key norms).
        qkv: output of its ``qkv`` layer, (B, N, 3·H·D/H).
        heads: ``"mean"`` or ``"max"`` over the heads.

    The softmax is taken in float32 whatever the dtype, before attention dropout, and includes the
    class token's attention to itself.
    """
    with torch.no_grad():
        row_BHN = _attention_rows(attention, qkv, slice(0, 1))[:, :, 0]
        return row_BHN.mean(1) if heads == "mean" else row_BHN.amax(1)


def _attention_rows(attention: Any, qkv: torch.Tensor, rows: slice) -> torch.Tensor:
    """Return softmax(q kᵀ · scale) of the query rows, (B, H, rows, N) float32."""
    B, N, _ = qkv.shape
    query, key, _ = qkv.view(B, N, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attention.q_norm(query[:, :, rows]), attention.k_norm(key)
    scores = (query * attention.scale) @ key.transpose(-2, -1)
    rows_BHN: torch.Tensor = scores.float().softmax(-1)
    return rows_BHN
