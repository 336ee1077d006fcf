"""Vision Transformers: split equals whole, parts own what they own, attention is timm's own."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import timm
import torch
from torch import nn

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.measure import Attention, HeadAttention, Keys, Measurement
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.models.build import build_model, fingerprint
from splitlab.core.models.vit import ViT, class_attention, vit

CPU = torch.device("cpu")

# timm's own architectures, narrow and shallow. Between them: two prefix tokens, LayerScale,
# registers, no class token, q/k norm, a norm in front of the blocks, parallel and differential
# blocks, average, attention and token pooling, and dropout of every kind.
NARROW: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {}),
    "deit": ("deit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "layerscale": ("deit3_small_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 28}),
    "no-class-token": ("vit_wee_patch16_reg1_gap_256", {}),
    "qk-norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "norm-pre": ("vit_base_patch16_clip_224", {}),
    "parallel": ("vit_base_patch16_xp_224", {}),
    "differential": ("vit_dwee_patch16_reg1_gap_256", {}),
    "map-pooling": ("vit_so150m_patch16_reg4_map_256", {}),
    "frozen-patches": ("vit_tiny_patch16_224", {"pos_embed": "none"}),
}
DEPTH = 3


def narrow(kind: str, **arguments: Any) -> Any:
    """Build one of NARROW, with weights that make every part matter."""
    name, own = NARROW[kind]
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    defaults = {"img_size": 32, "depth": DEPTH, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
    with isolated_rng(0, kind, device=CPU):
        vit = timm.create_model(name, **defaults | own | arguments)
        for parameter in vit.parameters():  # LayerScale begins near 0, many biases at 0
            parameter.data += 0.2 * torch.randn_like(parameter)
        image = torch.zeros(1, 3, *vit.patch_embed.img_size)
        embedded = vit._pos_embed(vit.patch_embed(image))
    if embedded.shape[1] != vit.patch_embed.num_patches + vit.num_prefix_tokens:
        pytest.skip(f"timm {timm.__version__} leaves out the special tokens of {kind}")
    return vit


def model_of(module: Any) -> ViT:
    [size] = set(module.patch_embed.img_size)
    return ViT(module, channels=3, image_size=size)


def client_of(module: Any, cut: int) -> Any:
    return model_of(module).part(0, (cut,), CPU)


def server_of(module: Any, cut: int) -> Any:
    return model_of(module).part(1, (cut,), CPU)


def batch(part: Any, size: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(size, 3, *part.module.patch_embed.img_size, generator=generator)


@pytest.mark.parametrize("kind", NARROW)
def test_split_equals_whole_at_every_cut(kind: str, whole: Any) -> None:
    model = model_of(narrow(kind))
    trained = whole(model)
    moved = model.module.patch_embed.proj.weight - trained.end["patch_embed.proj.weight"]
    assert moved.abs().max() > 1e-2 / 2, "Adam's first step is as long as its rate"
    for cut in range(DEPTH + 1):
        trained.check(cut)


@pytest.mark.parametrize("kind", NARROW)
def test_two_cuts_equal_the_whole(kind: str, whole: Any) -> None:
    trained = whole(model_of(narrow(kind)))
    for cuts in ((0, 1), (0, DEPTH), (1, 2), (1, DEPTH)):
        trained.check(*cuts)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.slow
def test_split_equals_whole_at_full_width(name: str, whole: Any) -> None:
    trained = whole(build_model(name, classes=5, seed=1, image_size=32))
    for cut in range(13):
        trained.check(cut)


@pytest.mark.parametrize("cut", range(DEPTH + 1))
def test_the_layout_is_that_of_the_activations(cut: int) -> None:
    model = model_of(narrow("registers"))
    layout = model.layout(cut)
    client = model.part(0, (cut,), CPU)
    assert client.forward(batch(client)).shape == (4, layout.tokens, layout.width)
    assert (layout.tokens, layout.width, layout.prefix_tokens) == (9, 24, 5)
    assert (model.last_cut, model.cut_noun, model.default_cut) == (DEPTH, "blocks", 3)
    assert layout.class_token
    assert layout.any_tokens
    assert not model_of(narrow("no-class-token")).layout(cut).class_token


# What belongs to whom.


@pytest.mark.parametrize("cut", range(DEPTH + 1))
@pytest.mark.parametrize("kind", ["distilled", "map-pooling", "no-class-token"])
def test_every_tensor_is_at_exactly_one_peer(kind: str, cut: int) -> None:
    vit = narrow(kind)
    client, server = client_of(vit, cut), server_of(vit, cut)
    ours, theirs = client.state_dict(), server.state_dict()
    assert not ours.keys() & theirs.keys()
    assert ours.keys() | theirs.keys() == vit.state_dict().keys()
    assert "cls_token" not in theirs
    assert not any(name.startswith("head") for name in ours)
    assert sum(name.startswith("blocks.") for name in ours) * DEPTH == cut * sum(
        name.startswith("blocks.") for name in vit.state_dict()
    )


def test_the_other_part_takes_no_memory_and_cannot_be_used() -> None:
    vit = narrow("deit")
    client, server = client_of(vit, 1), server_of(vit, 1)
    own = {name for name, _ in client.named_parameters()}
    for name, parameter in client.module.named_parameters():
        assert parameter.is_meta is (name not in own)
    images = batch(client)
    tokens = torch.zeros(4, 5, 24)
    for use in (
        lambda: client.module(images),
        lambda: client.module.blocks[1](tokens),
        lambda: client.module.norm(tokens),
        lambda: client.module.head(tokens),
        lambda: server.module(images),  # patch_embed alone would not: torch's conv2d does not look
        lambda: server.module.blocks[0](tokens),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            use()


def test_frozen_parameters_stay_frozen() -> None:
    vit = narrow("deit")
    vit.patch_embed.proj.weight.requires_grad_(False)
    client = client_of(vit, 1)
    frozen = [name for name, p in client.named_parameters() if not p.requires_grad]
    assert frozen == ["patch_embed.proj.weight"]


@pytest.mark.parametrize("cut", [-1, DEPTH + 1])
@pytest.mark.parametrize("part", [client_of, server_of])
def test_a_cut_outside_the_model_is_refused(part: Any, cut: int) -> None:
    with pytest.raises(ConfigError, match=rf"--cut {cut} .*allowed: 0 to {DEPTH}"):
        part(narrow("deit"), cut)


def test_state_of_a_part_goes_back_into_a_fresh_one() -> None:
    old = server_of(narrow("layerscale"), 1)
    new = server_of(narrow("layerscale", init_values=0.5), 1)
    activations = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(new.forward(activations), old.forward(activations))
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.forward(activations), old.forward(activations))


@pytest.mark.parametrize(("cut", "other"), [(2, {}), (0, {}), (1, {"embed_dim": 32})])
def test_state_of_another_model_or_cut_is_refused(cut: int, other: dict[str, int]) -> None:
    state = client_of(narrow("deit"), 1).state_dict()
    client = client_of(narrow("deit", **other), cut)
    with pytest.raises(ConfigError, match="of another model or cut"):
        client.load_state_dict(state)


@pytest.mark.parametrize("mode", [True, False])
def test_train_switches_dropout(mode: bool) -> None:
    client = client_of(narrow("deit", proj_drop_rate=0.5), DEPTH)
    client.train(mode)
    images = batch(client)
    with isolated_rng(0, device=CPU):
        assert torch.equal(client.forward(images), client.forward(images)) is not mode


# Attention.


def unfused(kind: str, cut: int, images: torch.Tensor) -> list[torch.Tensor]:
    """Return what timm's own, un-fused attention computes in every client block, (B, H, N, N)."""
    maps: list[torch.Tensor] = []
    client = client_of(narrow(kind), cut)
    for block in client.module.blocks[:cut]:
        block.attn.fused_attn = False
        # The input of the attention's dropout is the softmax.
        block.attn.attn_drop.register_forward_hook(lambda m, args, out: maps.append(args[0]))
    client.forward(images)
    return [whole.detach() for whole in maps]


def measured(client: Any, images: torch.Tensor, request: Measurement) -> torch.Tensor:
    """Return what a forward pass measures."""
    client.forward(images)
    found: torch.Tensor = client.measured()[request]
    return found


@pytest.mark.parametrize("heads", ["mean", "max"])
@pytest.mark.parametrize("kind", ["deit", "distilled", "layerscale", "registers", "qk-norm"])
@pytest.mark.parametrize("cut", [1, DEPTH])
def test_class_attention_is_the_row_that_timm_computes(kind: str, heads: Any, cut: int) -> None:
    client = client_of(narrow(kind), cut)
    images = batch(client)
    row_BHN = unfused(kind, cut, images)[-1][:, :, 0]
    request = Attention(heads, "last")
    client.watch(request)
    plain = client_of(narrow(kind), cut).forward(images)
    activations = client.forward(images)
    attention = client.measured()[request]
    expected = row_BHN.mean(1) if heads == "mean" else row_BHN.amax(1)
    assert (attention.shape, attention.dtype) == (activations.shape[:2], torch.float32)
    assert not attention.requires_grad
    torch.testing.assert_close(attention, expected, rtol=1e-5, atol=1e-6)
    assert attention.std() > 1e-3
    assert torch.equal(activations, plain)
    assert torch.equal(measured(client, images, request), attention)


def test_class_attention_reads_one_block_of_half_precision_in_float32() -> None:
    attn = narrow("qk-norm").blocks[0].attn.to(torch.bfloat16)
    qkv = torch.randn(2, 5, 72, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    row = class_attention(attn, qkv)
    assert row.dtype is torch.float32
    torch.testing.assert_close(row.sum(1), torch.ones(2))


@pytest.mark.parametrize("kind", ["deit", "qk-norm"])
def test_what_autocast_leaves_in_half_is_measured_in_float32(kind: str) -> None:
    client = client_of(narrow(kind), 2)
    requests = [Attention(), Attention("max", "rollout"), Keys()]
    for request in requests:
        client.watch(request)
    images = batch(client)
    client.forward(images)
    exact = client.measured()
    with torch.autocast("cpu", torch.bfloat16):
        client.forward(images)
    for request, found in client.measured().items():
        assert found.dtype is torch.float32
        # 8 bits of every query and key, through two blocks.
        torch.testing.assert_close(found, exact[request], rtol=0.1, atol=0.05)


@pytest.mark.parametrize("heads", ["mean", "max"])
@pytest.mark.parametrize("cut", [1, DEPTH])
def test_rollout_equals_the_product_of_all_maps(heads: Any, cut: int) -> None:
    client = client_of(narrow("registers"), cut)
    images = batch(client)
    rollout = torch.eye(9).expand(4, -1, -1)
    for whole_BHNN in unfused("registers", cut, images):
        one = whole_BHNN.mean(1) if heads == "mean" else whole_BHNN.amax(1)
        one = one / one.sum(-1, keepdim=True)
        rollout = (0.5 * one + 0.5 * torch.eye(9)) @ rollout
    request = Attention(heads, "rollout")
    client.watch(request)
    row = measured(client, images, request)
    torch.testing.assert_close(row, rollout[:, 0], rtol=1e-5, atol=1e-6)


def test_different_measurements_are_taken_in_one_pass() -> None:
    requests = [Attention(), Attention("max"), Attention("mean", "rollout"), Keys()]
    together = client_of(narrow("deit"), 2)
    for request in [*requests, *requests]:
        together.watch(request)
    images = batch(together)
    together.forward(images)
    found = together.measured()
    assert found.keys() == set(requests)
    for request in requests:
        alone = client_of(narrow("deit"), 2)
        alone.watch(request)
        assert torch.equal(measured(alone, images, request), found[request])


def test_attention_by_head_is_that_of_every_client_block_and_waits_for_a_reader() -> None:
    client = client_of(narrow("qk-norm"), 2)
    for request in (HeadAttention(), Attention("mean"), Attention("max")):
        client.watch(request)
    images = batch(client)
    client.forward(images)
    found = client.measured()
    assert HeadAttention() not in found
    heads_BLHN = found[HeadAttention()]
    assert heads_BLHN.shape[:3] == (len(images), 2, 2)
    assert not heads_BLHN.requires_grad
    torch.testing.assert_close(heads_BLHN.sum(-1), torch.ones_like(heads_BLHN[..., 0]))
    torch.testing.assert_close(heads_BLHN[:, -1].mean(1), found[Attention("mean")])
    torch.testing.assert_close(heads_BLHN[:, -1].amax(1), found[Attention("max")])
    first = client_of(narrow("qk-norm"), 1)
    first.watch(Attention())
    own = measured(first, images, Attention())
    torch.testing.assert_close(heads_BLHN[:, 0].mean(1), own)


@pytest.mark.parametrize("kind", ["vit", "qk-norm", "registers"])
def test_keys_are_those_that_the_last_client_block_attends_with(kind: str) -> None:
    seen: list[torch.Tensor] = []
    client = client_of(narrow(kind), 2)
    client.train(False)
    client.watch(Keys())
    attention = client.module.blocks[1].attn
    attention.qkv.register_forward_hook(lambda module, args, output: seen.append(output))
    width = client.forward(batch(client)).shape[-1]
    key_BND = seen[0][..., width : 2 * width]
    per_head = [attention.k_norm(part) for part in key_BND.chunk(2, dim=-1)]
    keys = client.measured()[Keys()]
    assert not keys.requires_grad
    torch.testing.assert_close(keys, (per_head[0] + per_head[1]) / 2)


def test_nothing_is_measured_unless_it_is_asked_for() -> None:
    client = client_of(narrow("vit"), 1)
    client.forward(batch(client))
    assert client.measured() == {}


def test_a_token_of_size_k_counts_as_k_equal_ones() -> None:
    server = server_of(narrow("vit"), 1)
    server.train(False)
    few = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))
    many = torch.cat((few, few[:, 2:], few[:, 2:]), dim=1)
    sizes = torch.tensor([[1.0, 1.0, 3.0]]).expand(2, 3)
    torch.testing.assert_close(server.forward(few, sizes), server.forward(many))
    torch.testing.assert_close(server.forward(few, torch.ones(2, 3)), server.forward(few))
    assert not torch.allclose(server.forward(few, sizes), server.forward(few))


POOLING: list[tuple[str, dict[str, Any]]] = [
    ("deit", {}),
    ("distilled", {}),
    ("deit", {"global_pool": "avg"}),
    ("deit", {"global_pool": "avg", "fc_norm": False}),
    ("deit", {"global_pool": "avg", "pool_include_prefix": True}),
    ("deit", {"global_pool": "avgmax"}),
    ("deit", {"global_pool": "max"}),
    ("deit", {"global_pool": "map"}),
    ("deit", {"global_pool": "map", "pool_include_prefix": True}),
    ("no-class-token", {}),
    ("map-pooling", {}),
]


@pytest.mark.parametrize(("kind", "options"), POOLING)
def test_a_token_counts_as_so_many_equal_ones_in_every_pooling(kind: str, options: Any) -> None:
    module = narrow(kind, **options)
    server = server_of(module, 1)
    server.train(False)
    P = module.num_prefix_tokens
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, P + 5, 24, generator=draw)
    sizes = torch.tensor([1] * (P + 3) + [8, 3])
    with torch.no_grad():
        whole = server.forward(tokens.repeat_interleave(sizes, 1))
        merged = server.forward(tokens, sizes.float().expand(2, -1))
    torch.testing.assert_close(merged, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "options"), POOLING)
def test_plugins_see_whether_the_head_pools_patches(kind: str, options: Any) -> None:
    module = narrow(kind, **options)
    model = model_of(module)
    layout, server = model.layout(1), model.part(1, (1,), CPU)
    assert layout.pools is (module.global_pool != "token")
    tokens = torch.randn(2, layout.tokens, 24, generator=torch.Generator().manual_seed(0))
    server.train(False)
    with torch.no_grad():
        assert server.forward(tokens[:, : layout.least_tokens]).isfinite().all()


def test_a_pooling_that_cannot_weigh_by_size_is_refused() -> None:
    module = narrow("deit", global_pool="map")
    module.attn_pool = torch.nn.AdaptiveAvgPool2d(1)
    with pytest.raises(ConfigError, match="a AdaptiveAvgPool2d of this model takes no attention"):
        server_of(module, 1).forward(torch.zeros(1, 5, 24), torch.ones(1, 5))


def test_blocks_without_a_mask_refuse_token_sizes() -> None:
    module = narrow("vit")
    module.blocks[1] = nn.Identity()
    server = server_of(module, 1)
    with pytest.raises(ConfigError, match="a Identity of this model takes no attention mask"):
        server.forward(torch.zeros(2, 3, 24), torch.ones(2, 3))


@pytest.mark.parametrize("kind", ["vit", "distilled", "registers", "no-class-token"])
def test_the_grid_and_the_special_tokens_are_all_tokens(kind: str) -> None:
    model = model_of(narrow(kind))
    layout = model.layout(1)
    client = model.part(0, (1,), CPU)
    assert layout.grid is not None
    assert layout.grid[0] * layout.grid[1] + layout.prefix_tokens == layout.tokens
    assert client.forward(batch(client)).shape[1] == layout.tokens


@pytest.mark.parametrize(
    ("kind", "cut", "request_", "reason"),
    [
        (
            "parallel",
            1,
            Attention(),
            r"the attention of .*, but a ParallelScalingBlock has no attn\.qkv",
        ),
        (
            "parallel",
            1,
            Keys(),
            r"the attention keys .*, but a ParallelScalingBlock has no attn\.qkv",
        ),
        ("no-class-token", 1, Attention(), "of a class token, which this model does not have"),
        ("no-class-token", 1, HeadAttention(), "by head, which this model does not have"),
        ("vit", 0, HeadAttention(), "by head, but --cut 0 leaves .* none; .*--cut 1 to 3"),
        (
            "vit",
            0,
            Attention(),
            "the attention of .* but --cut 0 leaves .* none; allowed here: --cut 1 to 3",
        ),
        ("vit", 0, Keys(), "the attention keys of .*, but --cut 0 leaves .* none; .*--cut 1 to 3"),
        ("vit", 1, Measurement(), "a measurement, which this model does not have"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    kind: str, cut: int, request_: Any, reason: str
) -> None:
    client = client_of(narrow(kind), cut)
    with pytest.raises(ConfigError, match=f"^the client's part is asked for .*{reason}"):
        client.watch(request_)
    assert client.unable(request_) is not None
    assert client.measured() == {}


def test_whether_blocks_take_a_mask_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_of(narrow("vit"), 1)
    asked: list[Any] = []
    original = inspect.signature
    with monkeypatch.context() as patched:
        patched.setattr(inspect, "signature", lambda of: asked.append(of) or original(of))
        for _ in range(3):
            server.forward(torch.zeros(2, 3, 24), torch.ones(2, 3))
    assert len(asked) == DEPTH - 1


def test_keys_need_no_class_token() -> None:
    client = client_of(narrow("no-class-token"), 1)
    client.watch(Keys())
    assert measured(client, batch(client), Keys()).shape == (4, 5, 12)


# A transformer of any shape.


@pytest.mark.parametrize(
    "options",
    [{}, {"class_token": False}, {"channels": 1, "patch": 4}, {"width": 24, "heads": 2}],
)
def test_any_shape_trains_split_as_whole(options: dict[str, Any], whole: Any) -> None:
    small = {"image_size": 16, "patch": 8, "width": 16, "depth": 2, "heads": 2}
    with isolated_rng(0, device=CPU):
        model = vit(classes=5, **small | options)
    trained = whole(model)
    for cut in range(model.last_cut + 1):
        trained.check(cut)
    assert model.default_cut == model.last_cut == 2
    assert model.layout(1).class_token is options.get("class_token", True)


def test_the_default_shape_is_deit_tinys() -> None:
    with isolated_rng(1, "model", device=CPU):
        own = vit(classes=5)
    deit = build_model("deit_tiny_patch16_224", classes=5, seed=1)
    assert fingerprint(own.module) == fingerprint(deit.module)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"image_size": 30}, "image size of 30 is no multiple of the patch, 16 .* take 16 or 32"),
        ({"image_size": 8}, "image size of 8 is no multiple of the patch, 16 pixels"),
        ({"image_size": 0}, "image size of 0 is no multiple"),
        ({"width": 32}, "width=32 is no multiple of heads=3; take width=30 or 33"),
        ({"patch": 0}, "patch=0 is not allowed"),
        ({"depth": 0}, "depth=0 is not allowed"),
        ({"depth": 1_000_000}, r"depth=1000000 is not allowed; 1 to 1,000$"),
        ({"heads": 0}, "heads=0 is not allowed"),
        ({"width": -3}, "width=-3 is not allowed"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(options: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        vit(classes=5, **options)


def test_a_timm_model_of_a_size_that_its_patches_do_not_fill_is_refused() -> None:
    with pytest.raises(ConfigError, match="image size of 40 is no multiple of the patch, 16"):
        build_model("deit_tiny_patch16_224", classes=5, seed=0, image_size=40)
