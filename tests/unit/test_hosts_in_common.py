"""What hosts have to see alike: marks of the driver and paths; and how those are told that lack or lose something."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from orpo_ray.cluster import hosts
from orpo_ray.cluster.contents import digest_of, digests_of_others, stats_of
from orpo_ray.cluster.groups import places
from orpo_ray.cluster.hosts import absent, look, marked, unseen
from orpo_ray.config import parse_config
from orpo_ray.training.agreement import first_mistake
from orpo_ray.training.lost_workers import lost_connection, reason
from orpo_ray.training.watchdog import Pulse, diagnosis

HERE, THERE = "a (10.0.0.1)", "b (10.0.0.2)"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_PATIENCE", 0.0)


def test_a_mark_is_seen_where_the_folder_is_the_same_and_goes_with_the_command(tmp_path: Path) -> None:
    folders = {"storage.path": str(tmp_path / "runs/one"), "storage.checkpoints": "s3://bucket/one"}
    stale = tmp_path / "runs/one/.seen-by-all-hosts-0"
    stale.parent.mkdir(parents=True)
    stale.touch()  # of a driver that was killed
    with marked(folders) as marks:
        assert unseen(marks) == "" and list(marks.folders) == ["storage.path"]
        for elsewhere in tmp_path / "other", tmp_path / "runs":  # a disk of its own, empty or not
            told = unseen(marks._replace(folders={"storage.path": str(elsewhere)}))
            assert told.startswith(f"storage.path: {socket.gethostname()}") and f"writes to {elsewhere};" in told
    assert list(stale.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_has_no_mark(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with marked({"storage.checkpoints": str(tmp_path / "file/run")}) as marks:
        assert marks.folders == {} and look(marks, {}) == ""


def test_a_path_that_only_the_driver_has_is_told_with_both_hosts(tmp_path: Path) -> None:
    there = tmp_path / "pairs.jsonl"
    assert absent({"data.train": str(tmp_path), "data.eval": f"{tmp_path}:subset"}, HERE) == ""
    told = absent({"model.name_or_path": str(tmp_path), "data.train": str(there)}, HERE)
    assert told.startswith(f"data.train: {there} is there on {HERE}, and not on {socket.gethostname()};")


def test_paths_that_lead_to_other_files_are_told_by_what_is_in_them(tmp_path: Path) -> None:
    """As another host would find them: a copy has another inode."""
    pairs, model, data = tmp_path / "pairs.jsonl", tmp_path / "model", tmp_path / "data"
    pairs.write_text("one")
    for folder, name in ((model, "config.json"), (data, "train.jsonl")):
        folder.mkdir()
        (folder / name).write_text("{}")
    held = {name: (str(path), stats_of(str(path))) for name, path in (("p", pairs), ("m", model), ("d", data))}
    assert digests_of_others(held) == {}, "nothing is read where files are the same"
    before = {name: digest_of(path) for name, (path, _) in held.items()}
    for file in pairs, model / "config.json", data / "train.jsonl":
        (tmp_path / "copy").write_text(file.read_text())
        (tmp_path / "copy").replace(file)
    assert digests_of_others(held) == {name: before[name] for name in "pm"}
    (model / ".cache").mkdir()
    (model / ".cache/when").touch()
    assert digests_of_others(held)["m"] == before["m"]
    (model / "model.safetensors").write_text("trained further")
    assert digests_of_others(held)["m"] != before["m"]


def test_local_paths_are_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    config = parse_config({
        "name": "one", "model": {"name_or_path": str(tmp_path), "tokenizer": "org/name"},
        "data": {
            "train": [{"name": "own", "source": f"{tmp_path}/pairs:sub"}, {"name": "hub", "source": "org/data"}],
            "eval": "toy-test",
        },
        "objective": {"name": "dpo", "reference": str(tmp_path)},
        "eval": {"win_rate": {"against": str(tmp_path), "reward_model": "toy"}},
    }, [], "test")  # fmt: skip
    assert config.local_paths() == {
        "model.name_or_path": str(tmp_path), "data.train.own": f"{tmp_path}/pairs:sub",
        "objective.reference": str(tmp_path), "eval.win_rate.against": str(tmp_path),
    }  # fmt: skip
    absolute = config.with_absolute_paths()
    assert absolute.local_paths() == config.local_paths()


@pytest.mark.parametrize(
    ("mistakes", "said"),
    [
        (["no such file", "no such file"], "no such file"),
        (["", "no such file"], f"on {THERE}: no such file"),
        (["", f"{THERE} lacks it"], f"{THERE} lacks it"),
        (["first", "second"], f"on {HERE}: first"),
    ],
)
def test_a_mistake_that_is_not_everywhere_names_its_host(mistakes: list[str], said: str) -> None:
    assert first_mistake([*zip((HERE, THERE), mistakes, strict=True)]) == said


def ray_train_says(last: str) -> str:
    return (
        "A worker health check failed.\nWorker info: Worker(\n  actor=Actor(RayTrainWorker, 86ea),\n  metadata=Actor"
        f"Metadata(\n    hostname='b',\n    node_id='04a3',\n    node_ip='10.0.0.2',\n    pid=1,\n  ),\n)\n{last}"
    )


NODE = "The actor died because its node has died. Node Id: 04a3\n\tterminated unexpectedly: missing heartbeats"
WORKER = "The actor is dead because its worker process has died. End of file. Some common causes include: many"

MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2, ID: 04a3) was "
    "22.36GB used / 23.54GB limit (0.949873)\nOOM kill reason: Memory usage 24011268096B exceeded threshold of "
    "24007987200B\nRefer to the documentation on how to address the out of memory issue: a page"
)  # of Ray 2.60


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        (
            {1: ray_train_says(NODE)},
            f"the connection between {HERE} and {THERE} is lost, and rank 1 with it: terminated unexpectedly: missing "
            "heartbeats",
        ),
        (
            {0: "RuntimeError: closed by peer", 3: ray_train_says(WORKER)},
            f"rank 3 and 1 more on {THERE} is lost: The actor is dead because its worker process has died. End of "
            "file.",
        ),
        (
            {0: ray_train_says(MEMORY)},
            f"rank 0 on {THERE} is lost: Ray has ended it, as its node (10.0.0.2) was low on memory: 22.36 of 23.54 GB "
            "were in use",
        ),
        ({2: "Traceback\n  in f\nValueError: no\n"}, "rank 2 failed: ValueError: no"),
        ({2: ""}, "rank 2 failed: it gave no reason"),
    ],
    ids=["node", "process", "memory", "exception", "nothing"],
)
def test_what_ended_a_group_is_one_line(errors: dict[int, str], said: str) -> None:
    assert reason(errors, HERE) == said


def test_silence_between_two_hosts_names_both() -> None:
    first = [Pulse(1, 1, "loop.py:1 run", "a, process 7"), Pulse(1, 1, "loop.py:1 run", "b, process 8")]
    second = [first[0]._replace(beats=2), first[1]]
    told = diagnosis(first, second, [0], [HERE, THERE])
    assert told.startswith(f"{HERE} hears nothing of {THERE}: rank 1 gives no sign of life (b, process 8)")
    assert diagnosis([None, None], [None, None], [1], [HERE, THERE]).startswith(f"{THERE} hears nothing of {HERE}: ")
    assert diagnosis(first, second, [0], [HERE, HERE]).startswith("rank 1 gives no sign of life")


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "room"),
    [
        ([(16, 0)] * 3, 24, 0, 0), ([(16, 0)] * 3, 5, 0, 9), ([(16, 2), (4, 8)], 4, 1, 3), ([(0, 4)], 0, 0.5, 8),
        ([], 1, 0, 0),
    ],
)  # fmt: skip
def test_places_are_counted_by_node(nodes: list[tuple[float, float]], cpus: float, gpus: float, room: int) -> None:
    assert places(nodes, cpus, gpus) == room


@pytest.mark.parametrize(
    ("error", "address"),
    [
        ("[/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4711", "10.0.0.2"),
        ("[../gloo/transport/tcp/pair.cc:311] Read error [::ffff:10.0.0.2]:80: No route to host", "10.0.0.2"),
        ("[../gloo/transport/tcp/pair.cc:311] writev [fd00::2]:80: Connection timed out", "fd00::2"),
        ("index [3]:4 is out of range", ""),
    ],
)  # fmt: skip
def test_an_error_of_a_connection_is_known(error: str, address: str) -> None:
    told = lost_connection(RuntimeError(error), "a")
    assert told.startswith(f"the connection between a and {address} is lost: ") if address else told == ""
