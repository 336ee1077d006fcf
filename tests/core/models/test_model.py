"""The cut model: split equals whole, halves own what they own, attention is timm's own."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from splitlab.core.catalogue.tables import ROOT, catalogue
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.peer import AttentionRequest
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.models import model as model_module
from splitlab.core.models.build import build_model, fingerprint
from splitlab.core.models.model import ClientHalf, ServerHalf, default_cut, input_shape, list_models
from splitlab.core.models.vit import class_attention

CPU = torch.device("cpu")
LR = 1e-2

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
    return vit


def batch(vit: Any, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(size, 3, *vit.patch_embed.img_size, generator=generator)
    return images, torch.randint(5, (size,), generator=generator)


class Whole:
    """Three steps of timm's own forward with Adam: what a split run must repeat."""

    def __init__(self, vit: Any) -> None:
        self.start = deepcopy(vit)
        self.images, self.targets = batch(vit)
        self.logits, self.losses, self.gradients = [], [], []
        optimizer = torch.optim.Adam(vit.parameters(), lr=LR)
        for _ in range(3):
            logits = vit(self.images)
            loss = F.cross_entropy(logits, self.targets)
            loss.backward()
            self.logits.append(logits.detach())
            self.losses.append(loss.item())
            self.gradients.append(
                {n: None if p.grad is None else p.grad.clone() for n, p in vit.named_parameters()}
            )
            optimizer.step()
            optimizer.zero_grad()
        self.end = vit.state_dict()

    def check(self, cut: int) -> None:
        """Train from the same weights, cut in two, and compare every bit."""
        client = ClientHalf(deepcopy(self.start), cut, CPU)
        server = ServerHalf(deepcopy(self.start), cut, CPU)
        halves = {**dict(client.named_parameters()), **dict(server.named_parameters())}
        assert halves.keys() == self.gradients[0].keys()
        optimizers = [
            torch.optim.Adam([p for _, p in half.named_parameters()], lr=LR)
            for half in (client, server)
        ]
        for step in range(3):
            activations, attention = client.forward(self.images)
            assert attention is None
            leaf = activations.detach().requires_grad_()
            logits = server.forward(leaf)
            loss = F.cross_entropy(logits, self.targets)
            loss.backward()
            activations.backward(leaf.grad)
            assert torch.equal(logits, self.logits[step])
            assert loss.item() == self.losses[step]
            for name, parameter in halves.items():
                wanted = self.gradients[step][name]
                if wanted is None:  # older timm does not use the class token of every model
                    assert parameter.grad is None, name
                else:
                    assert torch.equal(parameter.grad, wanted), name
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        trained = client.state_dict() | server.state_dict()
        assert trained.keys() == self.end.keys()
        assert all(torch.equal(tensor, self.end[name]) for name, tensor in trained.items())


@pytest.mark.parametrize("kind", NARROW)
def test_split_equals_whole_at_every_cut(kind: str) -> None:
    whole = Whole(narrow(kind))
    moved = whole.start.patch_embed.proj.weight - whole.end["patch_embed.proj.weight"]
    assert moved.abs().max() > LR / 2, "Adam's first step is as long as its rate"
    for cut in range(DEPTH + 1):
        whole.check(cut)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.slow
def test_split_equals_whole_at_full_width(name: str) -> None:
    whole = Whole(build_model(name, classes=5, seed=1, image_size=32))
    for cut in range(13):
        whole.check(cut)


@pytest.mark.parametrize("cut", range(DEPTH + 1))
def test_facts_of_a_half_are_those_of_its_activations(cut: int) -> None:
    vit = narrow("registers")
    client = ClientHalf(vit, cut, CPU)
    activations, _ = client.forward(batch(vit)[0])
    assert activations.shape == (4, client.tokens, client.width)
    assert (client.tokens, client.width, client.depth, client.prefix_tokens) == (9, 24, DEPTH, 5)
    assert client.class_token
    assert not ClientHalf(narrow("no-class-token"), cut, CPU).class_token


# What belongs to whom.


@pytest.mark.parametrize("cut", range(DEPTH + 1))
@pytest.mark.parametrize("kind", ["distilled", "map-pooling", "no-class-token"])
def test_every_tensor_is_at_exactly_one_peer(kind: str, cut: int) -> None:
    vit = narrow(kind)
    client, server = ClientHalf(deepcopy(vit), cut, CPU), ServerHalf(deepcopy(vit), cut, CPU)
    ours, theirs = client.state_dict(), server.state_dict()
    assert not ours.keys() & theirs.keys()
    assert ours.keys() | theirs.keys() == vit.state_dict().keys()
    assert "cls_token" not in theirs
    assert not any(name.startswith("head") for name in ours)
    assert sum(name.startswith("blocks.") for name in ours) * DEPTH == cut * sum(
        name.startswith("blocks.") for name in vit.state_dict()
    )


def test_the_other_half_takes_no_memory_and_cannot_be_used() -> None:
    vit = narrow("deit")
    client, server = ClientHalf(deepcopy(vit), 1, CPU), ServerHalf(deepcopy(vit), 1, CPU)
    own = {name for name, _ in client.named_parameters()}
    for name, parameter in client.vit.named_parameters():
        assert parameter.is_meta is (name not in own)
    images, _ = batch(vit)
    tokens = torch.zeros(4, 5, 24)
    for use in (
        lambda: client.vit(images),
        lambda: client.vit.blocks[1](tokens),
        lambda: client.vit.norm(tokens),
        lambda: client.vit.head(tokens),
        lambda: server.vit(images),  # patch_embed alone would not: torch's conv2d does not look
        lambda: server.vit.blocks[0](tokens),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            use()


def test_frozen_parameters_stay_frozen() -> None:
    vit = narrow("deit")
    vit.patch_embed.proj.weight.requires_grad_(False)
    client = ClientHalf(vit, 1, CPU)
    frozen = [name for name, p in client.named_parameters() if not p.requires_grad]
    assert frozen == ["patch_embed.proj.weight"]


@pytest.mark.parametrize("cut", [-1, DEPTH + 1])
@pytest.mark.parametrize("half", [ClientHalf, ServerHalf])
def test_a_cut_outside_the_model_is_refused(half: Any, cut: int) -> None:
    with pytest.raises(ConfigError, match=rf"--cut {cut} .*allowed: 0 to {DEPTH}"):
        half(narrow("deit"), cut, CPU)


def test_state_of_a_half_goes_back_into_a_fresh_one() -> None:
    old = ServerHalf(narrow("layerscale"), 1, CPU)
    new = ServerHalf(narrow("layerscale", init_values=0.5), 1, CPU)
    activations = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(new.forward(activations), old.forward(activations))
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.forward(activations), old.forward(activations))


@pytest.mark.parametrize(("cut", "other"), [(2, {}), (0, {}), (1, {"embed_dim": 32})])
def test_state_of_another_model_or_cut_is_refused(cut: int, other: dict[str, int]) -> None:
    state = ClientHalf(narrow("deit"), 1, CPU).state_dict()
    half = ClientHalf(narrow("deit", **other), cut, CPU)
    with pytest.raises(ConfigError, match="of another model or cut"):
        half.load_state_dict(state)


@pytest.mark.parametrize("mode", [True, False])
def test_train_switches_dropout(mode: bool) -> None:
    half = ClientHalf(narrow("deit", proj_drop_rate=0.5), DEPTH, CPU)
    half.train(mode)
    images, _ = batch(half.vit)
    with isolated_rng(0, device=CPU):
        assert torch.equal(half.forward(images)[0], half.forward(images)[0]) is not mode


# Attention.


def unfused(half: ClientHalf, images: torch.Tensor) -> list[torch.Tensor]:
    """Return what timm's own, un-fused attention computes in every client block, (B, H, N, N)."""
    maps: list[torch.Tensor] = []
    vit = deepcopy(half.vit)
    for block in vit.blocks[: half.cut]:
        block.attn.fused_attn = False
        # The input of the attention's dropout is the softmax.
        block.attn.attn_drop.register_forward_hook(lambda m, args, out: maps.append(args[0]))
    ClientHalf.forward(_with(half, vit), images)
    return [whole.detach() for whole in maps]


def _with(half: ClientHalf, vit: Any) -> ClientHalf:
    other = object.__new__(ClientHalf)
    other.vit, other.cut, other._blocks, other._attention = (
        vit,
        half.cut,
        vit.blocks[: half.cut],
        None,
    )
    return other


@pytest.mark.parametrize("heads", ["mean", "max"])
@pytest.mark.parametrize("kind", ["deit", "distilled", "layerscale", "registers", "qk-norm"])
@pytest.mark.parametrize("cut", [1, DEPTH])
def test_class_attention_is_the_row_that_timm_computes(kind: str, heads: Any, cut: int) -> None:
    half = ClientHalf(narrow(kind), cut, CPU)
    images, _ = batch(half.vit)
    row_BHN = unfused(half, images)[-1][:, :, 0]
    half.measure_attention(AttentionRequest(heads, "last"))
    plain, _ = ClientHalf(narrow(kind), cut, CPU).forward(images)
    activations, attention = half.forward(images)
    expected = row_BHN.mean(1) if heads == "mean" else row_BHN.amax(1)
    assert attention is not None
    assert (attention.shape, attention.dtype) == ((4, half.tokens), torch.float32)
    assert not attention.requires_grad
    torch.testing.assert_close(attention, expected, rtol=1e-5, atol=1e-6)
    assert attention.std() > 1e-3
    assert torch.equal(activations, plain)
    assert torch.equal(half.forward(images)[1], attention)


def test_class_attention_reads_one_block_of_half_precision_in_float32() -> None:
    attn = narrow("qk-norm").blocks[0].attn.to(torch.bfloat16)
    qkv = torch.randn(2, 5, 72, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    row = class_attention(attn, qkv)
    assert row.dtype is torch.float32
    torch.testing.assert_close(row.sum(1), torch.ones(2))


@pytest.mark.parametrize("heads", ["mean", "max"])
@pytest.mark.parametrize("cut", [1, DEPTH])
def test_rollout_equals_the_product_of_all_maps(heads: Any, cut: int) -> None:
    half = ClientHalf(narrow("registers"), cut, CPU)
    images, _ = batch(half.vit)
    rollout = torch.eye(half.tokens).expand(4, -1, -1)
    for whole_BHNN in unfused(half, images):
        one = whole_BHNN.mean(1) if heads == "mean" else whole_BHNN.amax(1)
        one = one / one.sum(-1, keepdim=True)
        rollout = (0.5 * one + 0.5 * torch.eye(half.tokens)) @ rollout
    half.measure_attention(AttentionRequest(heads, "rollout"))
    torch.testing.assert_close(half.forward(images)[1], rollout[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "qk-norm", "registers"])
def test_keys_are_those_that_the_last_client_block_attends_with(kind: str) -> None:
    vit = narrow(kind)
    images, _ = batch(vit)
    seen: list[torch.Tensor] = []
    half = ClientHalf(vit, 2, CPU)
    half.train(False)
    half.measure_keys()
    attention = half.vit.blocks[1].attn
    attention.qkv.register_forward_hook(lambda module, args, output: seen.append(output))
    activations, _ = half.forward(images)
    width = activations.shape[-1]
    key_BND = seen[0][..., width : 2 * width]
    per_head = [attention.k_norm(part) for part in key_BND.chunk(2, dim=-1)]
    keys = half.keys()
    assert keys is not None
    assert not keys.requires_grad
    torch.testing.assert_close(keys, (per_head[0] + per_head[1]) / 2)


def test_keys_are_not_there_unless_they_are_measured() -> None:
    half = ClientHalf(narrow("vit"), 1, CPU)
    half.forward(batch(half.vit)[0])
    assert half.keys() is None


def test_a_token_of_size_k_counts_as_k_equal_ones() -> None:
    server = ServerHalf(narrow("vit"), 1, CPU)
    server.train(False)
    few = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))
    many = torch.cat((few, few[:, 2:], few[:, 2:]), dim=1)
    sizes = torch.tensor([[1.0, 1.0, 3.0]]).expand(2, 3)
    torch.testing.assert_close(server.forward(few, sizes), server.forward(many))
    torch.testing.assert_close(server.forward(few, torch.ones(2, 3)), server.forward(few))
    assert not torch.allclose(server.forward(few, sizes), server.forward(few))


def test_blocks_without_a_mask_refuse_token_sizes() -> None:
    server = ServerHalf(narrow("vit"), 1, CPU)
    server._blocks = nn.Sequential(nn.Identity())
    with pytest.raises(ConfigError, match="a Identity of this model takes no attention mask"):
        server.forward(torch.zeros(2, 3, 24), torch.ones(2, 3))


@pytest.mark.parametrize("kind", ["vit", "distilled", "registers", "no-class-token"])
def test_the_grid_and_the_special_tokens_are_all_tokens(kind: str) -> None:
    half = ClientHalf(narrow(kind), 1, CPU)
    assert half.grid is not None
    assert half.grid[0] * half.grid[1] + half.prefix_tokens == half.tokens
    assert half.forward(batch(half.vit)[0])[0].shape[1] == half.tokens


def test_blocks_without_qkv_refuse_attention() -> None:
    half = ClientHalf(narrow("parallel"), 1, CPU)
    with pytest.raises(ConfigError, match=r"ParallelScalingBlock: it has no attn\.qkv"):
        half.measure_attention(AttentionRequest())


# Fingerprints.


def test_fingerprint_tells_models_apart_by_every_number_name_and_dtype() -> None:
    vit = narrow("deit")
    mark = fingerprint(vit)
    assert mark == fingerprint(narrow("deit"))
    assert len(mark) == 16
    for name, parameter in vit.named_parameters():
        changed = deepcopy(vit)
        flat = changed.get_parameter(name).data.view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf))
        assert fingerprint(changed) != mark, name
        assert parameter is not changed.get_parameter(name)


def test_fingerprint_tells_shapes_dtypes_and_names_apart() -> None:
    marks = set()
    for name in ("a", "b"):
        for shape in ((2, 2), (4, 1), (4,), ()):
            for dtype in (torch.float32, torch.int32, torch.bfloat16):
                holder = nn.Module()
                holder.register_buffer(name, torch.zeros(shape, dtype=dtype))
                marks.add(fingerprint(holder))
    assert len(marks) == 2 * 4 * 3


# Building by name.


@pytest.fixture(scope="module")
def deit() -> Any:
    return build_model("deit_tiny_patch16_224", classes=5, seed=1, image_size=32)


def build(name: str = "vit-mini", **arguments: Any) -> Any:
    return build_model(name, **{"classes": 10, "seed": 0} | arguments)


def test_a_timm_model_is_timms(deit: Any) -> None:
    assert len(deit.blocks) == 12
    assert deit.head.out_features == 5
    assert deit.patch_embed.img_size == (32, 32)
    with isolated_rng(1, "model", device=CPU):
        timms = timm.create_model("deit_tiny_patch16_224", num_classes=5, img_size=32)
    assert fingerprint(deit) == fingerprint(timms)


def test_equal_seeds_build_equal_models_and_leave_random_state_alone() -> None:
    torch_state = torch.get_rng_state()
    marks = [fingerprint(build(seed=seed, weights="none")) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert marks[0] == marks[1] != marks[2]


def test_vit_mini_comes_with_weights_but_no_head() -> None:
    first, second = build(seed=1), build(seed=2)
    trunk = [name for name in first.state_dict() if not name.startswith("head.")]
    assert all(torch.equal(first.state_dict()[name], second.state_dict()[name]) for name in trunk)
    assert not torch.equal(first.head.weight, second.head.weight)
    assert torch.equal(first.head.weight, build(seed=1, weights="none").head.weight)
    assert not torch.equal(first.pos_embed, build(seed=1, weights="none").pos_embed)


def test_weights_of_another_number_of_classes_load_without_their_head(tmp_path: Path) -> None:
    old = build(classes=7, seed=5, weights="none")
    save_file(old.state_dict(), tmp_path / "old.safetensors")
    same = build(classes=7, seed=6, weights=str(tmp_path / "old.safetensors"))
    assert fingerprint(same) == fingerprint(old)
    new = build(classes=3, seed=6, weights=str(tmp_path / "old.safetensors"))
    assert torch.equal(new.blocks[0].mlp.fc1.weight, old.blocks[0].mlp.fc1.weight)
    assert torch.equal(new.head.weight, build(classes=3, seed=6, weights="none").head.weight)


def test_weights_of_a_distilled_model_load_without_both_heads(tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    old = build(name, classes=7, image_size=32)
    save_file(old.state_dict(), tmp_path / "old.safetensors")
    new = build(name, seed=1, image_size=32, weights=str(tmp_path / "old.safetensors"))
    assert torch.equal(new.dist_token, old.dist_token)
    assert new.head_dist.weight.shape[0] == 10


def test_weights_without_a_head_load_and_without_anything_else_do_not(tmp_path: Path) -> None:
    old = build(seed=5, weights="none").state_dict()
    trunk = {name: t for name, t in old.items() if not name.startswith("head.")}
    save_file(trunk, tmp_path / "trunk.safetensors")
    assert torch.equal(
        build(weights=str(tmp_path / "trunk.safetensors")).norm.bias, old["norm.bias"]
    )
    for change in (
        {"norm.bias": torch.zeros(3)},
        {"norm.bias": None},
        {"blocks.99.norm1.bias": torch.zeros(64)},
    ):
        bad = {n: t for n, t in (trunk | change).items() if t is not None}
        save_file(bad, tmp_path / "bad.safetensors")
        with pytest.raises(ConfigError, match=rf"1 tensors missing.*first '{next(iter(change))}'"):
            build(weights=str(tmp_path / "bad.safetensors"))


def test_weights_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no tensors here")
    whole = tmp_path / "whole.safetensors"
    save_file(build(weights="none").state_dict(), whole)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(whole.read_bytes()[:-100])
    for path, reason in (
        (tmp_path / "nothing", "no such file"),
        (tmp_path, "no such file"),
        (text, "not a safetensors file"),
        (torn, "not a safetensors file"),
    ):
        with pytest.raises(ConfigError, match=rf"--weights {path}: {reason}"):
            build(weights=str(path))


def test_weights_of_another_model_are_refused(tmp_path: Path, deit: Any) -> None:
    save_file(deit.state_dict(), tmp_path / "deit.safetensors")
    with pytest.raises(ConfigError, match=r"does not fit the model: .* give weights of the same"):
        build(weights=str(tmp_path / "deit.safetensors"))


def test_image_size_changes_the_tokens() -> None:
    assert build(image_size=16, weights="none").patch_embed.num_patches == 16
    assert ClientHalf(build(image_size=16, weights="none"), 3, CPU).tokens == 17


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit-mni", "did you mean 'vit-mini'"),
        ("deit_tiny_patch16_242", "did you mean 'deit_tiny_patch16_224'"),
        ("", "unknown model ''"),
        ("qqq", "`splitlab models` lists all"),
    ],
)
def test_unknown_models_name_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        build(name)
    with pytest.raises(ConfigError, match=hint):
        input_shape(name)


@pytest.mark.parametrize("name", ["resnet18", "vit_relpos_small_patch16_224"])
def test_models_of_another_kind_are_refused(name: str) -> None:
    arguments = {"image_size": 32} if name.startswith("vit") else {}
    with pytest.raises(ConfigError, match=f"model '{name}' is a .*not a timm VisionTransformer"):
        build(name, **arguments)


def test_a_model_that_timm_cannot_build_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match="'resnet18' cannot be built"):
        build("resnet18", image_size=32)  # timm's ResNet takes no img_size


def test_pretrained_needs_weights_that_timm_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="timm publishes no weights for 'vit-mini'"):
        build(pretrained=True)

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no route to the hub\nsecond line")

    monkeypatch.setattr(model_module.timm, "create_model", offline)
    with pytest.raises(ConfigError, match=r"no route to the hub; download .* --weights FILE"):
        build("deit_tiny_patch16_224", pretrained=True)


def test_pretrained_reaches_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    original = timm.create_model

    def record(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        asked.append((name, pretrained))
        return original(name, **arguments)

    monkeypatch.setattr(model_module.timm, "create_model", record)
    build("deit_tiny_patch16_224", pretrained=True, image_size=32)
    assert asked == [("deit_tiny_patch16_224", True)]


def test_input_shape_is_the_models_own_or_as_asked() -> None:
    assert input_shape("vit-mini") == (1, 28)
    assert input_shape("vit-mini", 32) == (1, 32)
    assert input_shape("deit_tiny_patch16_224") == (3, 224)
    assert input_shape("deit_tiny_patch16_224.fb_in1k", 64) == (3, 64)
    assert input_shape("vit_base_patch14_dinov2") == (3, 518)
    with pytest.raises(ConfigError, match=r"takes .* images; choose --image-size"):
        input_shape(_oblong())


def _oblong() -> str:
    for name in timm.list_models():
        made_for = timm.get_pretrained_cfg(name)
        if made_for and made_for.input_size[1] != made_for.input_size[2]:
            return str(name)
    pytest.skip("timm has no model for oblong images")


def test_default_cut_is_the_papers_unless_the_catalogue_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert default_cut("deit_tiny_patch16_224") == 3
    assert default_cut("vit-mini") == catalogue()["models"]["vit-mini"]["cut"]
    monkeypatch.setattr(model_module, "catalogue", lambda: {"models": {"mine": {"cut": 5}}})
    assert default_cut("mine") == 5


def test_listed_models_are_vision_transformers_of_timm() -> None:
    names = list_models()
    assert {"deit_tiny_patch16_224", "vit_base_patch14_dinov2"} <= set(names)
    assert names == sorted(set(names))
    assert "resnet18" not in names
    for name in names[:: len(names) // 5]:
        with isolated_rng(0, "listed", device=CPU):
            kind = type(timm.create_model(name, depth=1, embed_dim=24, num_heads=2))
        assert issubclass(kind, model_module.VisionTransformer), name


def test_own_models_have_their_files() -> None:
    for name, table in catalogue()["models"].items():
        assert (ROOT / table["weights"]).is_file(), name
