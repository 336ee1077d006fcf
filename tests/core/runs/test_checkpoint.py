"""Checkpoints: all or nothing, two of them, and nothing that runs when it is read."""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs import checkpoint as checkpoint_module
from splitlab.core.runs.checkpoint import Checkpoints

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.int8,
    torch.bool,
]


def file(folder: Path, step: int, role: str = "client") -> Path:
    return folder / "checkpoints" / f"step-{step:08d}" / f"{role}.safetensors"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 2), (2, 3)])
def test_tensors_come_back_as_they_were(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = torch.arange(6).resize_(shape).to(dtype)
    Checkpoints(tmp_path, "client").save(1, {"x": tensor}, {})
    back = Checkpoints(tmp_path, "client").load(1)[0]["x"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back, tensor)


def test_views_of_one_memory_strides_and_live_tensors_can_be_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4).requires_grad_()
    tensors = {"whole": base, "turned": base.T, "row": base[1], 'odd "name"/é': base[:, 1]}
    Checkpoints(tmp_path, "server").save(3, tensors, {})
    back, _ = Checkpoints(tmp_path, "server").load(3)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert not any(tensor.requires_grad for tensor in back.values())


def test_values_come_back_as_json_has_them(tmp_path: Path) -> None:
    values = {"a": 1, "b": [1.5, None, True], "c": {"d": "é\n"}, "nan": float("inf")}
    Checkpoints(tmp_path, "client").save(1, {}, values)
    assert Checkpoints(tmp_path, "client").load(1) == ({}, values)


def test_the_two_newest_steps_are_kept_for_each_peer(tmp_path: Path) -> None:
    client, server = Checkpoints(tmp_path, "client"), Checkpoints(tmp_path, "server")
    assert client.steps() == []
    for step in (9, 10, 100):
        server.save(step, {"x": torch.zeros(1)}, {})
        # The server is ahead of the client by one; both still have a step in common.
        assert set(server.steps()) & set(client.steps()) or step == 9
        client.save(step, {"x": torch.ones(1)}, {})
    assert client.steps() == server.steps() == [10, 100]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000010",
        "step-00000100",
    ]
    assert client.load(10)[0]["x"] == 1
    assert server.load(10)[0]["x"] == 0


def test_older_steps_are_kept_on_request(tmp_path: Path) -> None:
    client, server = Checkpoints(tmp_path, "client"), Checkpoints(tmp_path, "server")
    for step, keep in ((2, [2]), (4, [2]), (6, [2]), (8, [2, 99])):
        for peer in (server, client):
            peer.save(step, {}, {}, keep)
    assert client.steps() == server.steps() == [2, 6, 8]
    assert client.older(6, lambda step: True) == 2
    server.save(10, {}, {}, [2, 10])
    client.save(10, {}, {})  # each peer keeps what it is asked to
    assert (server.steps(), client.steps()) == ([2, 8, 10], [8, 10])


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "client")
    for step in (1, 2):
        checkpoints.save(step, {}, {})
    note = tmp_path / "checkpoints" / "step-00000001" / "server.safetensors"
    note.write_text("of the other peer")
    (tmp_path / "checkpoints" / "step-best").mkdir()
    (tmp_path / "checkpoints" / "step-best" / "client.safetensors").write_text("mine")
    checkpoints.save(3, {}, {})
    assert checkpoints.steps() == [2, 3]
    assert note.read_text() == "of the other peer"
    assert (tmp_path / "checkpoints" / "step-best" / "client.safetensors").exists()


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "client")
    for number in (1.0, 2.0):
        checkpoints.save(5, {"x": torch.tensor(number)}, {})
    assert checkpoints.steps() == [5]
    assert checkpoints.load(5)[0]["x"] == 2


def test_a_missing_step_names_those_that_are_there(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "server")
    with pytest.raises(ConfigError, match=r"the server has no checkpoint of step 3 .*it has: none"):
        checkpoints.load(3)
    checkpoints.save(5, {}, {})
    checkpoints.save(7, {}, {})
    with pytest.raises(ConfigError, match=r"it has: 5, 7\)"):
        checkpoints.load(-1)


def test_a_torn_file_is_refused_wherever_it_was_torn(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "client")
    checkpoints.save(1, {"x": torch.arange(100.0)}, {"step": 1})
    whole = file(tmp_path, 1).read_bytes()
    for length in (0, 1, 8, 20, len(whole) // 2, len(whole) - 1):
        file(tmp_path, 1).write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"client\.safetensors is damaged \("):
            checkpoints.load(1)
    file(tmp_path, 1).write_bytes(whole)
    assert checkpoints.load(1)[1] == {"step": 1}


def test_a_safetensors_file_of_another_program_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for metadata in (None, {"values": "no json"}, {"other": "{}"}):
        file(tmp_path, 1).parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": torch.zeros(1)}, file(tmp_path, 1), metadata=metadata)
        with pytest.raises(ConfigError, match="is damaged"):
            Checkpoints(tmp_path, "client").load(1)


def test_a_save_that_fails_leaves_the_older_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, "client")
    checkpoints.save(1, {"x": torch.ones(1)}, {})

    def power_cut(source: Any, target: Any) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module.os, "replace", power_cut)
        for step in (1, 2):
            with pytest.raises(ConfigError, match=r"cannot write the checkpoint .*power cut"):
                checkpoints.save(step, {"x": torch.zeros(1)}, {})
    assert checkpoints.steps() == [1]
    assert checkpoints.load(1)[0]["x"] == 1
    for step in (2, 3, 4):
        checkpoints.save(step, {}, {})
    assert not list(tmp_path.rglob("step-00000001/*"))


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(
        checkpoint_module.os, "fsync", lambda fd: (order.append("fsync"), real_fsync(fd))[1]
    )
    monkeypatch.setattr(
        checkpoint_module.os,
        "replace",
        lambda a, b: (order.append("replace"), real_replace(a, b))[1],
    )
    Checkpoints(tmp_path, "client").save(1, {}, {})
    assert order == ["fsync", "replace"]


def test_a_reader_meets_whole_files_only(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "client")
    checkpoints.save(1, {"x": torch.zeros(50_000)}, {"n": 0})
    done = threading.Event()

    def write() -> None:
        for n in range(30):
            checkpoints.save(1, {"x": torch.full((50_000,), float(n))}, {"n": n})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not done.is_set():
            tensors, values = Checkpoints(tmp_path, "client").load(1)
            assert (tensors["x"] == values["n"]).all()
    finally:
        writer.join(30)


def test_there_is_no_pickle_in_a_checkpoint(tiny: Any, tmp_path: Path) -> None:
    client, server = tiny.pair()
    tiny.train(client, server, range(2))
    checkpoints = Checkpoints(tmp_path, "server")
    checkpoints.save(2, *server.state())
    content = file(tmp_path, 2, "server").read_bytes()
    # A JSON header and the numbers of the tensors make up every byte.
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__").keys() == {"values", "marks", "checksum"}
    tensors = server.state()[0]
    assert header.keys() == tensors.keys()
    assert len(content) == 8 + length + sum(tensor.nbytes for tensor in tensors.values())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["server.safetensors"]


def test_what_is_newer_than_the_step_gone_on_from_is_forgotten(tmp_path: Path) -> None:
    server, client = Checkpoints(tmp_path, "server"), Checkpoints(tmp_path, "client")
    for step in (7, 14):
        server.save(step, {}, {})
    client.save(7, {}, {})
    server.forget_after(7)
    assert server.steps() == [7]
    for step in (8, 9):
        server.save(step, {}, {})
    assert server.steps() == [8, 9]  # 14 would have pushed 8 out
    assert client.steps() == [7]


def test_who_begins_forgets_its_own_steps_and_no_others(tmp_path: Path) -> None:
    theirs, mine = (Checkpoints(tmp_path, "server", MARKS | {"run": run}) for run in ("a", "b"))
    for step in (7, 14):
        theirs.save(step, {}, {})
    mine.save(9, {}, {})
    file(tmp_path, 14, "server").write_bytes(b"torn")
    mine.forget_after(0)
    assert mine.steps() == [7, 14]
    theirs.forget_after(0)
    assert theirs.steps() == [14]
    for step in (1, 2, 3):
        theirs.save(step, {}, {})
    assert theirs.steps() == [2, 3, 14]  # what is left in place pushes nothing out
    theirs.forget_after(3)
    assert theirs.steps() == [2, 3]


def test_halves_of_a_killed_process_are_forgotten(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "client")
    kept.save(2, {}, {})
    whose = ((2, "client"), (2, "server"), (4, "client"))
    halves = [file(tmp_path, step, role).with_suffix(".7.tmp") for step, role in whose]
    for half in halves:
        half.parent.mkdir(exist_ok=True)
        half.touch()
    kept.forget_after(2)
    assert [half.exists() for half in halves] == [False, True, False]
    assert kept.steps() == [2]
    assert not halves[2].parent.exists()


# What a checkpoint belongs to.

MARKS = {"run": "0123456789abcdef", "seed": "3", "plan": "fedcba9876543210"}


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "client", MARKS)
    tensors = {"a": torch.arange(8, dtype=torch.uint8), "b": torch.ones(2)}
    checkpoints.save(1, tensors, {"step": 1})
    whole = file(tmp_path, 1).read_bytes()
    padding = len(whole[:-16].rstrip(b" ")), len(whole) - 16  # of the header, which says nothing
    for at in range(0, len(whole), 3):
        if padding[0] <= at < padding[1]:
            continue
        torn = bytearray(whole)
        torn[at] ^= 1 << at % 8
        file(tmp_path, 1).write_bytes(torn)
        assert not checkpoints.whole(1), at
        with pytest.raises(ConfigError) as caught:
            checkpoints.load(1)
        assert "\n" not in str(caught.value)
    file(tmp_path, 1).write_bytes(whole)
    assert checkpoints.whole(1)


@pytest.mark.parametrize("name", ["run", "seed", "plan"])
def test_a_file_of_something_else_is_refused_with_both(tmp_path: Path, name: str) -> None:
    Checkpoints(tmp_path, "client", MARKS).save(1, {}, {})
    mine = Checkpoints(tmp_path, "client", MARKS | {name: "another"})
    told = rf"client.safetensors is of {name} {MARKS[name]}, not of {name} another; put the right"
    with pytest.raises(ConfigError, match=told):
        mine.load(1)
    if name == "plan":
        assert mine.load(1, plans=[MARKS["plan"]]) == ({}, {})  # a change that was accepted


def test_swapped_roles_and_steps_are_refused(tmp_path: Path) -> None:
    client, server = (Checkpoints(tmp_path, role, MARKS) for role in ("client", "server"))
    for step in (1, 2):
        client.save(step, {}, {})
        server.save(step, {}, {})
    whole = file(tmp_path, 2).read_bytes()
    file(tmp_path, 2).write_bytes(file(tmp_path, 2, "server").read_bytes())
    with pytest.raises(ConfigError, match="is of role server, not of role client"):
        client.load(2)
    file(tmp_path, 2).write_bytes(file(tmp_path, 1).read_bytes())
    with pytest.raises(ConfigError, match="is of step 1, not of step 2"):
        client.load(2)
    assert client.older(2, client.whole) == 1
    file(tmp_path, 1).write_bytes(b"")
    assert client.older(2, client.whole) == 0
    file(tmp_path, 2).write_bytes(whole)
    assert client.whole(2)


def test_a_file_without_marks_is_not_of_any_run(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file(tmp_path, 1).parent.mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, file(tmp_path, 1), metadata={"values": "{}"})
    mine = Checkpoints(tmp_path, "client", MARKS)
    with pytest.raises(ConfigError, match=r"does not say which run it is of: an earlier version"):
        mine.load(1)
    with pytest.raises(ConfigError, match=r"does not say which run"):
        mine.refuse_others()


def test_checkpoints_of_another_run_are_not_ones_own(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "server", MARKS).save(4, {}, {})
    Checkpoints(tmp_path, "server", MARKS).refuse_others()
    other = Checkpoints(tmp_path, "server", MARKS | {"run": "another"})
    with pytest.raises(ConfigError, match=r"checkpoints of another run, 0123456789abcdef; go on"):
        other.refuse_others()
    file(tmp_path, 4, "server").write_bytes(b"torn")
    other.refuse_others()  # nobody can go on from it


def test_a_run_folder_that_is_gone_stays_gone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write the checkpoint .*No such file"):
        Checkpoints(tmp_path / "gone", "client").save(1, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_does_not_fit_names_the_file(tmp_path: Path) -> None:
    told = r"checkpoint .*client.safetensors does not fit the run \(KeyError: 'x'\)"
    with pytest.raises(ConfigError, match=told), Checkpoints(tmp_path, "client").taking(1):
        raise KeyError("x")


def test_numbers_that_are_not_finite_come_back_from_valid_json(tmp_path: Path) -> None:
    values = {"best": math.inf, "deep": [{"worst": -math.inf}, 1.0], "none": None}
    Checkpoints(tmp_path, "client").save(1, {}, values)
    assert b"Infinity" not in file(tmp_path, 1).read_bytes()
    assert Checkpoints(tmp_path, "client").load(1)[1] == values
