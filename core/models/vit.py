"""timm's Vision Transformers, cut between their blocks.

Nothing of timm is re-typed. A part runs timm's own submodules in timm's order: cut 0 lies behind
the embedding, cut c behind block c. Measurements read what passes by anyway, with forward hooks.

Shapes: B samples, N tokens (P special ones first), D width, H heads, C classes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.measure import Attention, HeadAttention, Keys, Measured, Measurement
from splitlab.core.contract.part import Layout
from splitlab.core.models.segments import Segment, Segmented, SegmentedPart, ran

__all__ = ["ViT", "class_attention", "shaped", "vit", "whole"]

_OF_THE_HEAD = ("norm", "fc_norm", "attn_pool", "head_drop", "head", "head_dist")
_USUAL_CUT = 3  # the paper's


def vit(
    *,
    classes: int,
    image_size: int = 224,
    patch: int = 16,
    channels: int = 3,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    class_token: bool = True,
    drop_path: float = 0.0,
) -> ViT:
    """A Vision Transformer of any shape, with new numbers.

    Args:
        classes: C, width of the head.
        image_size: height and width of an image, in pixels; a multiple of the patch.
        patch: height and width of a patch, in pixels.
        channels: of an image, 1 or 3.
        width: D, a multiple of the heads.
        depth: how many blocks.
        heads: attention heads of every block.
        class_token: whether a class token stands in front; without, the head takes the mean.
        drop_path: probability with which training drops the last block's branches; it rises to
            that from 0 at the first block.
    """
    for name, value, most in (
        ("patch", patch, 65_536),
        ("width", width, 65_536),
        ("depth", depth, 1_000),
        ("heads", heads, width),
    ):
        if not 1 <= value <= most:
            raise ConfigError(f"{name}={value} is not allowed; 1 to {most:,}")
    if width % heads:
        raise ConfigError(
            f"width={width} is no multiple of heads={heads}; take width={width - width % heads} or "
            f"{width - width % heads + heads}"
        )
    if drop_path and depth == 1:
        raise ConfigError(
            "a single block drops nothing, as the first of several; leave --drop-path out, or take "
            "a larger depth"
        )
    pooled: dict[str, Any] = {} if class_token else {"class_token": False, "global_pool": "avg"}
    _check_image_size(image_size, patch)
    return shaped(
        num_classes=classes,
        img_size=image_size,
        patch_size=patch,
        in_chans=channels,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        drop_path_rate=drop_path,
        **pooled,
    )


def shaped(**options: Any) -> ViT:
    """A Vision Transformer by timm's own options: ``img_size``, ``in_chans``, ``num_classes``…"""
    return whole(VisionTransformer(**options))


def whole(module: Any) -> ViT:
    """Return a Vision Transformer of timm as a model, of the images that it was made for."""
    embedding = module.patch_embed
    return ViT(module, channels=embedding.proj.in_channels, image_size=embedding.img_size[0])


def _check_image_size(image_size: int, patch: int) -> None:
    if image_size < 1 or image_size % patch:
        below = max(patch, image_size - image_size % patch)
        raise ConfigError(
            f"an image size of {image_size} is no multiple of the patch, {patch} pixels; take "
            f"{below} or {below + patch}"
        )


class ViT(Segmented):
    """A Vision Transformer of timm (a `splitlab.core.contract.part.Model`).

    Args:
        module: timm's model.
        channels: of the images.
        image_size: their height and width in pixels.
    """

    cut_noun = "blocks"
    family = "vit"
    heads = ("head.", "head_dist.")
    in_place = False  # every block begins with a norm
    module: VisionTransformer

    def __init__(self, module: VisionTransformer, *, channels: int, image_size: int) -> None:
        embedding: Any = module.patch_embed
        patch = embedding.patch_size[0]
        if not getattr(module.patch_embed, "dynamic_img_pad", False):
            _check_image_size(image_size, patch)
        self.module = module
        self.channels = channels
        self.image_size = image_size
        self.last_cut = len(module.blocks)
        self.default_cut = min(_USUAL_CUT, self.last_cut)

    def segments(self, module: nn.Module) -> Sequence[Segment]:
        """Return embedding, blocks, and norm with the head."""
        own: Any = module

        def embed(images: torch.Tensor) -> torch.Tensor:
            x = own._pos_embed(own.patch_embed(images))
            embedded: torch.Tensor = own.norm_pre(own.patch_drop(x))
            return embedded

        def head(x: torch.Tensor, token_sizes: torch.Tensor | None = None) -> torch.Tensor:
            x = own.norm(x)
            if token_sizes is None or not self._pools:
                logits: torch.Tensor = own.forward_head(x)
            else:
                logits = own.head(own.head_drop(own.fc_norm(_pooled(own, x, token_sizes))))
            return logits

        return [embed, *own.blocks, head]

    @property
    def _pools(self) -> bool:
        """Whether the head reads the patches themselves, and not the special tokens alone."""
        return self.module.global_pool != "token"

    def segment_of(self, name: str) -> int:
        """Return 0 for the embedding, c for block c, and the last one for norm and head."""
        part, _, rest = name.partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) + 1
        return self.last_cut + 1 if part in _OF_THE_HEAD else 0

    def shape(self, cut: int) -> tuple[int, ...]:
        """Return (N, D)."""
        tokens = int(self.module.patch_embed.num_patches) + int(self.module.num_prefix_tokens)
        return tokens, int(self.module.embed_dim)

    def layout(self, cut: int) -> Layout:
        """Return what plugins see, the same at every cut."""
        (tokens, width), prefix = self.shape(cut), int(self.module.num_prefix_tokens)
        grid: Any = getattr(self.module.patch_embed, "grid_size", None)
        fits = grid and grid[0] * grid[1] + prefix == tokens
        return Layout(
            tokens,
            width,
            prefix,
            self.module.cls_token is not None,
            (int(grid[0]), int(grid[1])) if fits else None,
            pools=self._pools,
        )

    def part(self, index: int, cuts: Sequence[int], device: torch.device) -> ViTPart:
        """Return one of the parts that one or two cuts make; see the contract."""
        return ViTPart(self, index, cuts, device)

    def adapted(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return published weights under this model's names, resampled to its image size."""
        fitting: dict[str, torch.Tensor] = checkpoint_filter_fn(dict(state), self.module)
        return fitting


class ViTPart(SegmentedPart):
    """Some segments of a ViT, with measurements, and tokens that count by their size."""

    def __init__(self, model: ViT, index: int, cuts: Sequence[int], device: torch.device) -> None:
        super().__init__(model, index, cuts, device)
        self._blocks: Any = self.module.blocks
        self._client_blocks = cuts[0]
        self._class_token = model.layout(cuts[0]).class_token
        self._readers: dict[Measurement, _Reader] = {}

    def forward(
        self, inputs: torch.Tensor, token_sizes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the segments; with sizes, a token counts as so many equal ones.

        Log sizes are added to the attention logits of every block and of a head that pools by
        attention; a head that takes the mean weighs by size.
        """
        if token_sizes is None:
            return super().forward(inputs)
        if self._maskless:
            raise ConfigError(
                f"a {self._maskless} of this model takes no attention mask, which weighing tokens "
                "by their size needs; choose another model, or a method that sends no token sizes"
            )
        return self._run(inputs, token_sizes)

    def _through(self, inputs: torch.Tensor, token_sizes: torch.Tensor | None) -> torch.Tensor:
        if token_sizes is None:
            return super()._through(inputs, None)
        x, sizes = inputs, token_sizes.to(inputs.dtype)
        bias = _bias(sizes)
        for number, segment in enumerate(self._segments, self._first):
            block = isinstance(segment, nn.Module)
            weighs: dict[str, Any] = {"attn_mask": bias} if block else {"token_sizes": sizes}
            x = ran(number, segment, x, **weighs)
        return x

    @functools.cached_property
    def _maskless(self) -> str:
        """What attends in this part and takes no attention mask; empty if nothing does."""
        blocks = [block for block in self._segments if isinstance(block, nn.Module)]
        pool: Any = self.module.attn_pool if len(blocks) < len(self._segments) else None
        for module in [*blocks, *([pool] if pool is not None else [])]:
            if "attn_mask" not in inspect.signature(module.forward).parameters:
                return type(module).__name__
        return ""

    def unable(self, request: Measurement) -> str | None:
        """Return why the client's part cannot measure that; None if it can."""
        how = _HOW.get(type(request))
        if how is None or (how.class_token and not self._class_token):
            return super().unable(request)
        if self._client_blocks == 0:
            return (
                f"{request.words}, but --cut 0 leaves the client none; allowed here: --cut 1 to "
                f"{len(self._blocks)}"
            )
        for block in self._watched(request, how):
            attention = getattr(block, "attn", None)
            if not hasattr(attention, "qkv") or not hasattr(attention, "num_heads"):
                return (
                    f"{request.words}, but a {type(block).__name__} has no attn.qkv to read it "
                    "from; choose another model or a method that needs no attention"
                )
        return None

    def watch(self, request: Measurement) -> None:
        """Measure this in every `forward` from now on."""
        super().watch(request)
        if request not in self._readers:
            how = _HOW[type(request)]
            self._readers[request] = _Reader(self._watched(request, how), request, how.read)

    def measured(self) -> dict[Measurement, torch.Tensor]:
        """Return what was measured in the `forward` that just ran."""
        taken = {request: reader.take() for request, reader in self._readers.items()}
        later = {r: take for r, take in taken.items() if _HOW[type(r)].when_read}
        return Measured({r: take() for r, take in taken.items() if r not in later}, later)

    def _watched(self, request: Measurement, how: _How) -> Sequence[nn.Module]:
        mine = list(self._blocks[: self._client_blocks])
        return mine if how.every_block(request) else mine[-1:]


def _bias(sizes_BN: torch.Tensor) -> torch.Tensor:
    """Return what is added to attention logits (B, heads, queries, N): a token counts so often."""
    return sizes_BN.log()[:, None, None, :]


def _pooled(module: Any, x_BND: torch.Tensor, sizes_BN: torch.Tensor) -> torch.Tensor:
    """Return what timm's ``pool`` makes of so many equal tokens each, (B, D)."""
    first = 0 if module.pool_include_prefix else module.num_prefix_tokens
    x_BND, sizes_BN = x_BND[:, first:], sizes_BN[:, first:]
    if module.attn_pool is not None:
        pooled: torch.Tensor = module.attn_pool(x_BND, attn_mask=_bias(sizes_BN))
        return pooled
    most = x_BND.amax(dim=1)  # however many of a token there are
    if module.global_pool == "max":
        return most
    mean = (x_BND * sizes_BN[..., None]).sum(dim=1) / sizes_BN.sum(dim=1, keepdim=True)
    return mean if module.global_pool == "avg" else (mean + most) / 2


class _Reader:
    """Keeps queries and keys that pass by the ``attn.qkv`` of some blocks, for one measurement.

    A forward hook, so timm's fused attention stays on. Only the class token's row is computed,
    N·D multiplications a sample; rollout needs whole maps and costs accordingly.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        request: Measurement,
        measure: Callable[[Any, _Seen], torch.Tensor],
    ) -> None:
        self._request = request
        self._measure = measure
        self._seen: _Seen = []
        for block in blocks:
            attention: Any = block.attn
            attention.qkv.register_forward_hook(self._remember(attention))

    def _remember(self, attention: Any) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            self._seen.append((attention, output.detach()))

        return hook

    def take(self) -> Callable[[], torch.Tensor]:
        """Return what computes the measurement of the forward pass that just ran."""
        seen, self._seen = self._seen, []
        return functools.partial(torch.no_grad()(self._measure), self._request, seen)


_Seen = list[tuple[Any, torch.Tensor]]
"""Attention modules of timm, and what left their ``qkv`` layers, (B, N, 3·H·D/H)."""


def _read_attention(request: Attention, seen: _Seen) -> torch.Tensor:
    """Return (B, N) float32."""
    if request.layer == "last":
        [(attention, qkv)] = seen
        return class_attention(attention, qkv, heads=request.heads)
    attention, qkv = seen[-1]
    row = qkv.new_zeros(len(qkv), 1, qkv.shape[1], dtype=torch.float32)
    row[..., 0] = 1
    for attention, qkv in reversed(seen):
        whole = _attention_rows(attention, qkv, slice(None))
        whole_BNN = whole.mean(1) if request.heads == "mean" else whole.amax(1)
        row = 0.5 * row + 0.5 * row @ (whole_BNN / whole_BNN.sum(-1, keepdim=True))
    return row[:, 0]


def _read_heads(request: HeadAttention, seen: _Seen) -> torch.Tensor:
    """Return (B, L, H, N) float32."""
    rows = [_attention_rows(attention, qkv, slice(0, 1))[:, :, 0] for attention, qkv in seen]
    return torch.stack(rows, dim=1)


def _read_keys(request: Keys, seen: _Seen) -> torch.Tensor:
    """Return (B, N, D/H) float32."""
    [(attention, qkv)] = seen
    B, N, _ = qkv.shape
    key_BNHK = qkv.view(B, N, 3, attention.num_heads, -1)[:, :, 1]
    keys_BNK = _normed(attention.k_norm, key_BNHK).float().mean(2)
    return keys_BNK


def _never(request: Any) -> bool:
    return False


class _How(NamedTuple):
    """How a kind of measurement is read from what passes by.

    Attributes:
        read: makes the answer from the request and what was seen.
        class_token: whether it is of a class token.
        every_block: whether this request looks at all client blocks, not only at the last.
        when_read: whether it is computed only when somebody reads it.
    """

    read: Callable[[Any, _Seen], torch.Tensor]
    class_token: bool = False
    every_block: Callable[[Any], bool] = _never
    when_read: bool = False


_HOW: Mapping[type[Measurement], _How] = {
    Attention: _How(_read_attention, True, lambda request: request.layer == "rollout"),
    HeadAttention: _How(_read_heads, True, lambda request: True, when_read=True),
    Keys: _How(_read_keys),
}


def class_attention(attention: Any, qkv: torch.Tensor, *, heads: str = "mean") -> torch.Tensor:
    """Return how much the class token attends to every token, (B, N) float32, detached.

    Args:
        attention: timm's attention module (heads, scale, query and key norms).
        qkv: output of its ``qkv`` layer, (B, N, 3·H·D/H).
        heads: ``"mean"`` or ``"max"`` over the heads.

    Products and softmax are taken in float32 where the dtype is half of that, before attention
    dropout, and include the class token's attention to itself.
    """
    with torch.no_grad():
        row_BHN = _attention_rows(attention, qkv, slice(0, 1))[:, :, 0]
        return row_BHN.mean(1) if heads == "mean" else row_BHN.amax(1)


def _attention_rows(attention: Any, qkv: torch.Tensor, rows: slice) -> torch.Tensor:
    """Return softmax(q kᵀ · scale) of the query rows, (B, H, rows, N) float32."""
    B, N, _ = qkv.shape
    query, key, _ = qkv.view(B, N, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    query = _normed(attention.q_norm, query[:, :, rows])
    key = _normed(attention.k_norm, key)
    scores = (query * attention.scale) @ key.transpose(-2, -1)
    rows_BHN: torch.Tensor = scores.float().softmax(-1)
    return rows_BHN


def _normed(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return queries or keys behind their norm, in float32 at least.

    Autocast leaves them in half of that, and the norm's numbers are as the model's.
    """
    own = next(norm.parameters(), x)
    normed: torch.Tensor = norm(x.to(own.dtype))
    return normed.float() if normed.dtype.itemsize < 4 else normed
