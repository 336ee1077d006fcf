"""From a model's name to the whole model: weights, first numbers, facts, and one's own files."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.drop import DropPath
from torch import nn

from splitlab.core.catalogue.tables import ROOT, catalogue
from splitlab.core.contract.errors import ConfigError, SplitlabError
from splitlab.core.contract.seeding import isolated_rng
from splitlab.core.models import timm_models
from splitlab.core.models.build import bind_model, build_model, describe, fingerprint
from splitlab.core.models.segments import Segments

CPU = torch.device("cpu")
SMALL = "vit:image_size=16,patch=8,width=16,depth=2,heads=2"


def small() -> Any:
    return build_model(SMALL, classes=5, seed=0).module


# Fingerprints.


def test_fingerprint_tells_models_apart_by_every_number_name_and_dtype() -> None:
    vit = small()
    mark = fingerprint(vit)
    assert mark == fingerprint(small())
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
    return build_model("deit_tiny_patch16_224", classes=5, seed=1, image_size=32).module


def build(name: str = "vit-mini", **arguments: Any) -> Any:
    return build_model(name, **{"classes": 10, "seed": 0} | arguments).module


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


def test_image_size_changes_the_tokens() -> None:
    assert build(image_size=16, weights="none").patch_embed.num_patches == 16
    assert describe("vit-mini", image_size=16).layout.tokens == 17


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit-mni", "did you mean 'vit-mini'"),
        ("deit_tiny_patch16_242", "did you mean 'deit_tiny_patch16_224'"),
        ("resnet-18", "did you mean 'resnet18'"),
        ("", "unknown model ''"),
        ("qqq", "`splitlab models` lists all"),
    ],
)
def test_unknown_models_name_the_nearest(name: str, hint: str) -> None:
    for use in (build, describe):
        with pytest.raises(ConfigError, match=hint) as caught:
            use(name)
        assert len(str(caught.value)) < 600


def test_pretrained_needs_weights_that_timm_has(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub("")
    with pytest.raises(ConfigError, match="nobody publishes weights for 'vit-mini'"):
        build(pretrained=True)

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no route to the hub\nsecond line")

    monkeypatch.setattr(timm_models.timm, "create_model", offline)
    with pytest.raises(ConfigError, match=r"no route to the hub; download .* --weights FILE"):
        build("deit_tiny_patch16_224", pretrained=True)


def test_pretrained_reaches_timm(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub("")
    asked: list[Any] = []
    original = timm.create_model

    def record(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        asked.append((name, pretrained))
        return original(name, **arguments)

    monkeypatch.setattr(timm_models.timm, "create_model", record)
    build("deit_tiny_patch16_224", pretrained=True, image_size=32)
    assert asked == [("deit_tiny_patch16_224", True)]


@pytest.mark.parametrize("use", [bind_model, describe, build])
def test_published_weights_are_no_setting(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_models.timm, "create_model", None)  # nothing may be downloaded
    with pytest.raises(ConfigError, match=r"'resnet18': pretrained is not .*; --pretrained dec"):
        use("resnet18:pretrained=true")
    assert "pretrained" not in bind_model("resnet18").params


def test_a_function_of_ones_own_may_publish_weights(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nfrom splitlab.core import Segments\n"
        "def net(*, classes: int, pretrained: bool = False):\n"
        "    made = [nn.Flatten(), nn.Linear(12, classes, bias=pretrained)]\n"
        "    return Segments(made, channels=3, image_size=2)\n"
    )
    own = f"{tmp_path / 'mine.py'}:net"
    assert "1.bias" in build(own, pretrained=True).state_dict()
    assert "1.bias" not in build(own).state_dict()


def input_shape(name: str, image_size: int | None = None) -> tuple[int, int]:
    facts = describe(name, image_size=image_size)
    return facts.channels, facts.image_size


def test_input_shape_is_the_models_own_or_as_asked() -> None:
    assert input_shape("vit-mini") == (1, 28)
    assert input_shape("vit-mini", 32) == (1, 32)
    assert input_shape("deit_tiny_patch16_224") == (3, 224)
    assert input_shape("deit_tiny_patch16_224.fb_in1k", 64) == (3, 64)
    assert input_shape("vit_small_patch14_dinov2") == (3, 518)
    assert input_shape("resnet18:channels=1", 32) == (1, 32)


def test_default_cut_is_the_papers_unless_the_catalogue_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert describe("deit_tiny_patch16_224").cut == 3
    assert describe("vit-mini").cut == catalogue()["models"]["vit-mini"]["cut"]
    own = tmp_path / "registry.toml"
    own.write_text('[models.mine]\npreset = "vit:image_size=32"\nsummary = "mine"\ncut = 5\n')
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(own))
    assert describe("mine").cut == 5
    assert describe("mine", cut=2).cut == 2


def test_a_cut_of_the_catalogues_that_is_outside_is_not_the_users_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert describe("vit-mini:depth=2").cut == 2
    own = tmp_path / "registry.toml"
    own.write_text('[models.mine]\npreset = "vit:image_size=32,depth=4"\ncut = 5\n')
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(own))
    told = r"^cut = 5 of \[models.mine\] \(from .*\) is outside the model; allowed: 0 to 4 \(blocks"
    with pytest.raises(ConfigError, match=told):
        describe("mine")
    assert describe("mine", cut=4).cut == 4
    assert describe("mine:depth=6").cut == 5


def test_own_models_have_their_files() -> None:
    for name, table in catalogue()["models"].items():
        if "weights" in table:
            assert (ROOT / table["weights"]).is_file(), name


# Facts.


@pytest.mark.parametrize("name", ["vit-mini", SMALL, "resnet18", "deit_tiny_patch16_224"])
def test_facts_are_those_of_the_built_model(name: str) -> None:
    size = None if name in ("vit-mini", SMALL) else 32
    model = build_model(name, classes=7, seed=0, image_size=size)
    for cut in (0, model.last_cut):
        facts = describe(name, image_size=size, cut=cut, classes=7)
        assert (facts.channels, facts.image_size) == (model.channels, model.image_size)
        assert (facts.last_cut, facts.cut_noun) == (model.last_cut, model.cut_noun)
        assert (facts.layout, facts.cut) == (model.layout(cut), cut)
        for index, count in enumerate((facts.client_parameters, facts.server_parameters)):
            part = model.part(index, (cut,), CPU)
            assert sum(p.numel() for _, p in part.named_parameters()) == count


def test_facts_leave_random_state_alone_and_refuse_a_cut_outside() -> None:
    before = torch.get_rng_state()
    describe("resnet18", image_size=32)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ConfigError, match=r"--cut 9 is outside the model; allowed: 0 to 6"):
        describe("vit-mini", cut=9)


def test_the_ground_says_what_the_model_lacks() -> None:
    assert describe("vit-mini").ground.lacks == {}
    assert describe("vit-mini").ground.fixed_tokens == ""
    assert describe("vit-mini", cut=0).ground.lacks.keys() == {"attention", "heads", "keys"}
    ground = describe("resnet18", image_size=32).ground
    assert ground.lacks.keys() == {"attention", "heads", "keys"}
    assert ground.fixed_tokens == "its 64 tokens in a grid of 8 x 8, all of them"


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("vit-mini", "vit-mini"),
        ("vit-mini:depth=6", "vit-mini"),
        ("vit-mini:heads=2", "vit-mini:heads=2"),
        ("vit-mini:heads=2,depth=3", "vit-mini:depth=3,heads=2"),
        ("vit-mini:depth=3,heads=2", "vit-mini:depth=3,heads=2"),
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224"),
        ("resnet18:channels=3", "resnet18"),
        ("resnet18:channels=1", "resnet18:channels=1"),
        ("timm:name=resnet18", "timm:name=resnet18"),
    ],
)
def test_peers_compare_a_name_and_what_the_user_changed(text: str, identity: str) -> None:
    assert describe(text).identity == identity


def test_peers_compare_every_setting_of_a_preset_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "registry.toml"
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(own))
    identities = []
    for settings in ("width=64,heads=2", "heads=2,width=64", "width=64,heads=4"):
        own.write_text(f'[models.mine]\npreset = "vit:image_size=32,{settings}"\n')
        identities.append(describe("mine").identity)
    assert identities[0] == identities[1] == describe("mine:heads=2").identity
    assert identities[0] != identities[2] == describe("mine").identity
    assert identities[0].startswith("mine=vit:")
    assert "heads=2" in identities[0]


# Settings, and models of one's own.


def test_settings_shape_the_model() -> None:
    assert build("vit-mini:width=32,heads=2", weights="none").embed_dim == 32
    assert build("resnet18:channels=1", image_size=32).conv1.in_channels == 1
    assert bind_model("resnet18:channels=1").given == {"channels": 1}
    with pytest.raises(ConfigError, match="unknown parameter 'hight'"):
        build("vit-mini:hight=3")
    with pytest.raises(ConfigError, match="width=wide is not allowed; width takes int"):
        build("vit-mini:width=wide")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("resnet18:widht=3", "model 'resnet18': unknown parameter 'widht'"),
        ("resnet18:name=resnet34", "model 'resnet18': unknown parameter 'name'"),
        ("resnet18:channels=grey", "model 'resnet18': channels=grey is not allowed"),
        ("resnet18:channels", "model 'resnet18': 'channels' is not a setting; write resnet18:key"),
        ("resnet18:channels=1,channels=3", "model 'resnet18': channels is given twice"),
    ],
)
def test_mistakes_are_those_of_the_name_that_the_user_wrote(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{told}"):
        describe(text)


def test_a_preset_may_name_a_model_of_timms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registry.toml").write_text(
        "[models.mine]\npreset = 'resnet18:image_size=32'\n[models.grey]\n"
        "preset = 'mine:channels=1'\n[models.lost]\npreset = 'resnet1888'\n"
    )
    monkeypatch.chdir(tmp_path)
    assert describe("mine").layouts == describe("resnet18", image_size=32).layouts
    facts = describe("grey:image_size=64")
    assert (facts.channels, facts.image_size) == (1, 64)
    assert facts.identity.startswith("grey=mine=timm:")
    with pytest.raises(ConfigError, match=r"'lost' .preset resnet1888.: unknown .*'resnet18'"):
        describe("lost")


@pytest.mark.parametrize("name", ["adc", "timm:name=adc"])
def test_a_model_that_is_a_plugin_is_told_so(name: str) -> None:
    with pytest.raises(ConfigError, match="'adc' is a plugin, not a model; --plugin adc takes it"):
        bind_model(name)


@pytest.mark.parametrize("where", ["", "forward"])
def test_a_model_that_leaves_is_blamed(where: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nfrom splitlab.core import Segments\n"
        "class Leaves(nn.Module):\n    def forward(self, x):\n        raise SystemExit(3)\n"
        "def net(*, classes: int):\n"
        f"    if not {where!r}:\n        raise SystemExit(3)\n"
        "    return Segments([Leaves(), nn.Linear(2, classes)], channels=3, image_size=2)\n"
    )
    with pytest.raises(SplitlabError, match=r"SystemExit: 3 \(mine.py:"):
        describe(f"{tmp_path / 'mine.py'}:net")


def test_two_image_sizes_exclude_each_other() -> None:
    assert build("vit-mini:image_size=16", image_size=16, weights="none") is not None
    with pytest.raises(ConfigError, match=r"--image-size 32 and image_size=16 .* exclude each"):
        build("vit-mini:image_size=16", image_size=32)


OWN = """
from torch import nn

from splitlab.core import Segments


def net(*, classes: int, width: int = 4):
    stem = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(inplace=True))
    head = nn.Sequential(nn.Flatten(), nn.Linear(width * 36, classes))
    return Segments([stem, nn.BatchNorm2d(width), head], channels=1, image_size=8)


def headless(*, width: int = 4):
    return nn.Linear(width, width)


def bare(*, classes: int):
    return nn.Linear(classes, classes)


def wide(*, classes: int):
    return Segments([nn.Flatten(), nn.Linear(64, classes + 1)], channels=1, image_size=8)


def pair(*, classes: int):
    return Segments([nn.Flatten(), nn.LSTM(64, classes)], channels=1, image_size=8)


def needs(*, classes: int, width: int):
    layers = [nn.Sequential(nn.Flatten(), nn.Linear(64, width)), nn.Linear(width, classes)]
    return Segments(layers, channels=1, image_size=8)


def shallow(*, classes: int, depth: int = 3):
    stages = [nn.Sequential(nn.Flatten(), nn.Linear(64, 64)) for _ in range(depth)]
    head = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    return Segments([*stages, nn.Flatten(), head], channels=1, image_size=8, default_cut=1)


class Picky(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x):
        return x if float(x.detach().sum()) == 0 else None


def picky(*, classes: int):
    return Segments([Picky(1), nn.Flatten(), nn.LazyLinear(classes)], channels=1, image_size=8)
"""


def test_a_model_of_ones_own_is_named_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    model = build_model(f"{file}:net:width=6", classes=3, seed=0)
    assert isinstance(model, Segments)
    assert fingerprint(model.module) == fingerprint(
        build_model(f"{file}:net:width=6", classes=3, seed=0).module
    )
    facts = describe(f"{file}:net:width=6", classes=3)
    assert (facts.layout.tokens, facts.layout.width, facts.cut) == (36, 6, 0)
    assert facts.client_parameters == 6 * 9 + 6
    assert "net@" in facts.identity
    assert facts.identity != describe(f"{file}:net", classes=3).identity


def test_a_function_of_a_file_is_not_the_catalogues_model_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    own = tmp_path / "registry.toml"
    own.write_text('[models.net]\ntarget = "mine.py:net"\nweights = "none.safetensors"\ncut = 1\n')
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(own))
    assert describe("net", weights="none").cut == 1
    with pytest.raises(ConfigError, match=r"none.safetensors is no file"):
        build("net")
    assert describe(f"{tmp_path / 'mine.py'}:net").cut == 0
    assert build(f"{tmp_path / 'mine.py'}:net") is not None


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        (
            "headless",
            None,
            r"mine.py:headless' takes no parameter 'classes', .* is a function: def",
        ),
        ("Picky", None, r"mine.py:Picky' takes no parameter 'classes', the width of its head"),
        (
            "nett",
            None,
            r"'nett' \(did you mean 'net'\?\); known: bare, needs, net, pair, .*, wide$",
        ),
        ("needs", None, r"^model 'needs' needs width; write .*mine.py:needs:width=…$"),
        ("bare", None, "returned a Linear; it must return Segments, or an instance of a subclass"),
        ("net", 16, "--image-size 16 is not allowed: model 'net' takes images of 8 pixels"),
        ("gone", None, "gone"),
        ("wide", None, r"model 'wide': segment 1, the last one, makes \[11\] of one sample"),
        ("shallow:depth=0", None, r"'shallow:depth=0': default_cut=1 is outside the model; allow"),
        ("pair", None, "model 'pair': segment 1 of the model makes a tuple"),
    ],
)
def test_a_file_without_such_a_model_is_refused(
    tmp_path: Path, name: str, size: int | None, reason: str
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    for use in (build, describe):
        with pytest.raises(ConfigError, match=reason):
            use(f"{tmp_path / 'mine.py'}:{name}", image_size=size)


FAMILY = """
import torch
from timm.layers.drop import DropPath
from torch import nn

from splitlab.core import Segmented


class Chain(Segmented):
    channels, image_size, last_cut, default_cut, family = 1, 4, 1, CUT, "chain"

    def __init__(self, classes):
        self.module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, classes))

    def segments(self, module):
        return list(module)

    def segment_of(self, name):
        return int(name[0])

    def shape(self, cut):
        return ((16,), (8,))[cut]


def chain(*, classes: int):
    return Chain(classes)
"""


def test_a_family_of_ones_own_is_a_subclass(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(FAMILY.replace("CUT", "1"))
    facts = describe(f"{tmp_path / 'good.py'}:chain", classes=3)
    assert (facts.family, facts.cut, facts.layout.width) == ("chain", 1, 8)
    model = build_model(f"{tmp_path / 'good.py'}:chain", classes=3, seed=0)
    client, server = (model.part(index, (0,), CPU) for index in (0, 1))
    images = torch.ones(2, 1, 4, 4)
    assert torch.equal(server.forward(client.forward(images)), model.module(images))
    (tmp_path / "bad.py").write_text(FAMILY.replace("CUT", "2"))
    told = r"model 'chain': default_cut=2 is outside the model; allowed: 0 to 1 \(segments\)"
    with pytest.raises(ConfigError, match=told):
        describe(f"{tmp_path / 'bad.py'}:chain")


def test_a_model_that_needs_numbers_to_be_looked_at_is_given_some(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    facts = describe(f"{tmp_path / 'mine.py'}:picky", classes=3)
    assert (facts.client_parameters, facts.server_parameters) == (0, 64 * 3 + 3)
    assert (facts.layout.tokens, facts.layout.width) == (64, 1)


def test_a_model_that_is_only_looked_at_warns_of_nothing(tmp_path: Path) -> None:
    file = tmp_path / "loud.py"
    file.write_text(OWN.replace("    stem =", "    warnings.warn('loud')\n    stem ="))
    file.write_text("import warnings\n" + file.read_text())
    assert describe(f"{file}:net").last_cut == 1  # warnings are errors in tests
    with pytest.warns(UserWarning, match="loud"):
        build(f"{file}:net")


# Drop path.


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit:image_size=8,patch=4,width=8,depth=3,heads=2", None),
        ("vit-mini", None),
        ("deit_tiny_patch16_224", 32),
        ("convnext_atto", 32),
    ],
)
def test_drop_path_is_timms_and_changes_no_initial_number(name: str, size: int | None) -> None:
    plain = build_model(name, classes=4, seed=0, image_size=size)
    model = build_model(name, classes=4, seed=0, image_size=size, drop_path=0.3)
    assert fingerprint(model.module) == fingerprint(plain.module)
    rates = [inner.drop_prob for inner in model.module.modules() if isinstance(inner, DropPath)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)
    assert not any(isinstance(inner, DropPath) for inner in plain.module.modules())
    image = torch.zeros(2, model.channels, model.image_size, model.image_size)
    model.module.eval(), plain.module.eval()
    assert torch.equal(model.module(image), plain.module(image))


def test_a_model_without_branches_takes_no_drop_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'vgg11' has no residual branches that timm can drop"):
        build_model("vgg11", classes=4, seed=0, drop_path=0.1)
    file = tmp_path / "own.py"
    file.write_text(
        "from torch import nn\n"
        "from splitlab.core import Segments\n"
        "def own(*, classes: int) -> Segments:\n"
        "    flat = nn.Flatten()\n"
        "    return Segments([flat, nn.Linear(64, classes)], channels=1, image_size=8)\n"
    )
    with pytest.raises(ConfigError, match="takes no drop path; leave --drop-path out, or give its"):
        build_model(f"{file}:own", classes=4, seed=0, drop_path=0.1)
    one = "vit:image_size=8,patch=4,width=8,depth=1,heads=2"
    with pytest.raises(ConfigError, match="a single block drops nothing"):
        build_model(one, classes=4, seed=0, drop_path=0.1)
    with pytest.raises(ConfigError, match="--drop-path decides it"):
        build_model("vit-mini:drop_path=0.1", classes=4, seed=0)
