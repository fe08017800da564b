"xraycap.scale: whatever kills it, the store in the end is that of store_features; and two processes train as one."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from xraycap import scale
from xraycap.cli import app
from xraycap.encoder import ImageEncoder
from xraycap.features import ROW_BYTES, FeatureStore, store_features
from xraycap.scale import ray_features
from xraycap.studies import load_studies

WORDS = ["the heart is normal in size .", "the heart is large .", "the lungs are clear .",
         "a small effusion is seen .", "no effusion .", "the bones are old ."]


def own_table(folder, n):
    "`n` studies with tiny random images, two thirds to train -> path of their table."
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        for view in "fl":
            Image.fromarray(rng.integers(0, 256, (48, 48), dtype=np.uint8)).save(folder / f"{i}{view}.png")
        part = "train" if i % 3 else "val"
        findings = " ".join(rng.permutation(WORDS)[:3])
        rows.append(dict(frontal=f"{i}f.png", lateral=f"{i}l.png", findings=findings, split=part))
    pd.DataFrame(rows).to_csv(folder / "data.csv", index=False)
    return folder / "data.csv"


# Without Ray: what happens to shards, with an encoder that needs no time

class Cut(Exception): "The power."


def instead_of_ray(after=None):
    "Writes shards whose rows are made from each study's number and checksum; the power is cut `after` so many."
    def encode_all(shards, encoder, folder, bs):
        for i, shard in enumerate(shards):
            if i == after: raise Cut
            facts = json.loads(shard["studies"])
            wrong = {o["uid"]: "cannot be read" for o in facts if o["uid"] % 10 == 9}
            good = [o for o in facts if o["uid"] not in wrong]
            rows = b"".join(np.random.default_rng([o["uid"], o["stamp"]]).bytes(ROW_BYTES) for o in good)
            (folder / f"{shard['name']}.f16").write_bytes(rows)
            about = {"known": {o["uid"]: [o["stamp"], "x"] for o in good}, "failed": wrong}
            (folder / f"{shard['name']}.json").write_text(json.dumps(about))
            yield shard["name"]
    return encode_all


class Nothing(ImageEncoder):
    def __init__(self): super().__init__(None)


def simulated(n):
    names = {view: [f"phantom-{i}-{view}" for i in range(n)] for view in ("frontal", "lateral")}
    studies = pd.DataFrame(dict(uid=range(n), **names, mesh=[["Cardiomegaly"] if i % 2 else [] for i in range(n)]))
    studies.attrs["images"] = "phantom"
    return studies


@pytest.fixture(scope="module")
def nothing(): return Nothing()


@pytest.fixture
def straight(nothing, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "_encode_all", instead_of_ray())
    store, failed = ray_features(simulated(70), nothing, tmp_path / "straight", shard=1)
    assert len(store) == 63 and failed.uid.tolist() == list(range(9, 70, 10))
    assert sorted(p.suffix for p in (tmp_path / "straight").iterdir()) == [".csv", ".f16", ".json", ".lock"]
    return store


def identical(a, b): return a.path.read_bytes() == b.path.read_bytes() and a.rows == b.rows


@pytest.mark.parametrize("after", [0, 1, 30, 69])
def test_cut_while_encoding(straight, nothing, tmp_path, monkeypatch, after):
    monkeypatch.setattr(scale, "_encode_all", instead_of_ray(after))
    with pytest.raises(Cut): ray_features(simulated(70), nothing, tmp_path / "cut", shard=1)
    count = []
    def rest(shards, *args):
        count.append(len(shards))
        return instead_of_ray()(shards, *args)
    monkeypatch.setattr(scale, "_encode_all", rest)
    store, failed = ray_features(simulated(70), nothing, tmp_path / "cut", shard=1)
    assert identical(store, straight) and count == [70 - after] and len(failed) == 7


@pytest.mark.parametrize("after", [0, 1, 100, 127, 128, 135])
def test_cut_while_joining(straight, nothing, tmp_path, monkeypatch, after):
    "The power is cut when so many files of shards have been deleted (the first 64 shards are 128 files)."
    unlink, left = Path.unlink, [after]
    def sometimes(path, **kwargs):
        if path.parent.suffix == ".shards":
            if not left[0]: raise Cut
            left[0] -= 1
        return unlink(path, **kwargs)
    with monkeypatch.context() as m:
        m.setattr(Path, "unlink", sometimes)
        with pytest.raises(Cut): ray_features(simulated(70), nothing, tmp_path / "cut", shard=1)
    store, _ = ray_features(simulated(70), nothing, tmp_path / "cut", shard=1)
    assert identical(store, straight)
    np.testing.assert_array_equal(store[[3, 68]], straight[[3, 68]])


def test_more_studies_and_changed_ones(nothing, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "_encode_all", instead_of_ray())
    old, _ = ray_features(simulated(8), nothing, tmp_path, shard=3)
    before, later = old[2].copy(), simulated(20)
    later.at[2, "mesh"] = ["Pneumothorax"]
    new, failed = ray_features(later, nothing, tmp_path, shard=3)
    assert len(new) == 18 and failed.uid.tolist() == [9, 19]
    np.testing.assert_array_equal(new[[0, 1, 3]], old[[0, 1, 3]])
    assert not np.array_equal(new[2], before)
    np.testing.assert_array_equal(old[2], before)  # who has the store open keeps what was there


def test_no_study(nothing, tmp_path):
    with pytest.raises(ValueError, match="no study"): ray_features(simulated(0), nothing, tmp_path)


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "ray", None)
    table = str(own_table(tmp_path / "own", 2))
    result = CliRunner().invoke(app, ["features", "--images", table, "--encoder", "chest", "--engine", "ray"])
    assert result.exit_code == 2 and "pip install 'xraycap[scale]'" in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert not list((tmp_path / "home").rglob("*.f16"))


# With Ray. A GPU that is there by name only makes it read and encode in different processes, as on a machine with one.

@pytest.fixture(scope="module")
def ray():
    with scale._ray(num_cpus=1, num_gpus=1) as ray: yield ray


@pytest.fixture(scope="module")
def own(tmp_path_factory): return own_table(tmp_path_factory.mktemp("scale") / "own", 16)


@pytest.fixture(scope="module")
def chest_net(): return ImageEncoder("chest")


def test_ray_keeps_to_itself(ray):
    processes = psutil.Process().children(recursive=True)
    listening = [o.laddr.ip for p in processes for o in p.net_connections() if o.status == "LISTEN"]
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and ray.cluster_resources()["object_store_memory"] <= 2**29


def test_as_store_features(ray, own, chest_net, tmp_path, monkeypatch):
    studies = load_studies(own).head(4).iloc[::-1]
    plain = store_features(studies, chest_net, tmp_path / "plain")
    store, failed = ray_features(studies, chest_net, tmp_path / "ray")
    assert failed.empty and store.path.name == plain.path.name and store.rows == plain.rows
    difference = np.abs(store.data.astype(float) - plain.data.astype(float)).max()
    assert difference <= 1e-3 * plain.data.max()
    monkeypatch.setattr(chest_net, "spatial", lambda x: 1 / 0)  # nothing is left for store_features to encode
    assert len(store_features(studies, chest_net, tmp_path / "ray")) == 4


def test_images_that_cannot_be_read(ray, tmp_path, chest_net, monkeypatch):
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path / "home"))
    table = own_table(tmp_path / "own", 4)
    whole = (table.parent / "1l.png").read_bytes()
    (table.parent / "1l.png").write_bytes(whole[:600])
    (table.parent / "3f.png").write_text("no image")
    args = ["features", "--images", str(table), "--encoder", "chest", "--engine", "ray"]
    first = CliRunner().invoke(app, args)
    assert first.exit_code == 0, first.output
    path, = (tmp_path / "home" / "features").glob("*.f16")
    listed, uids = pd.read_csv(path.with_suffix(".failed.csv")), load_studies(table).uid.tolist()
    assert listed.uid.tolist() == [uids[1], uids[3]] and listed.problem.str.contains("1l.png|3f.png").all()
    assert "2 studies" in first.stdout and "failed.csv" in first.stderr
    assert sorted(FeatureStore(path).rows) == sorted([uids[0], uids[2]])
    for name in ("1l.png", "3f.png"): (table.parent / name).write_bytes(whole)
    second = CliRunner().invoke(app, args)
    assert second.exit_code == 0 and not path.with_suffix(".failed.csv").exists()
    assert sorted(FeatureStore(path).rows) == sorted(uids)
    for i in range(4): (table.parent / f"{i}f.png").write_text("no image")
    third = CliRunner().invoke(app, args)
    assert third.exit_code == 2 and "None of the 4 studies can be read" in third.stderr


FILL = """
import sys
from xraycap.encoder import ImageEncoder
from xraycap.studies import load_studies
from xraycap.scale import _ray, ray_features
with _ray(num_cpus=1): ray_features(load_studies(sys.argv[1]), ImageEncoder("chest"), sys.argv[2], shard=2)
"""


def watcher(process):
    "Ray's two agents, which do nothing here and notice a minute later that they are alone."
    try: return process.name().endswith("Agent")
    except psutil.Error: return False


def test_killed(ray, own, chest_net, tmp_path):
    """The whole program gets signal 9 after two of eight shards; nothing of it stays behind, and the next run ends
    with the same bytes."""
    command = [sys.executable, "-c", FILL, own, tmp_path / "cut"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    ready = lambda: list((tmp_path / "cut").glob("*.shards/*.json"))
    while process.poll() is None and len(ready()) < 2: time.sleep(.02)
    assert process.poll() is None, process.communicate()[1][-1000:]
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {p.name: p.stat().st_mtime_ns for p in ready()}
    assert family and 2 <= len(kept) < 8 and not list((tmp_path / "cut").glob("*.f16"))
    _, alive = psutil.wait_procs([p for p in family if not watcher(p)], timeout=30)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    kept |= {p.name: p.stat().st_mtime_ns for p in ready()}  # what was being written when its program died
    studies, names = load_studies(own), []
    encode_all = scale._encode_all
    def noted(shards, *args):
        for name in encode_all(shards, *args):
            names.append(name)
            yield name
    with pytest.MonkeyPatch.context() as m:
        m.setattr(scale, "_encode_all", noted)
        again, _ = ray_features(studies, chest_net, tmp_path / "cut", shard=2)
    straight, _ = ray_features(studies, chest_net, tmp_path / "straight", shard=2)
    assert identical(again, straight) and len(names) == 8 - len(kept)


# Several processes, one model

TRAIN = """
import os, sys
from xraycap.training import train_captioner
losses = train_captioner(sys.argv[1], images=sys.argv[2], encoder='chest', epochs=3, bs=16, dropout=0, min_count=1)
print("rank", os.environ.get("RANK"), losses.valid_loss.tolist(), losses.perplexity.tolist(), flush=True)
"""


def test_two_processes_train_as_one(own, tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "train.py").write_text(TRAIN)
    two = ("-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
           "--dynamo_backend no --main_process_port 0").split()
    said, learnt = {}, {}
    for name, launch in (("one", []), ("two", two)):
        command = [sys.executable, *launch, tmp_path / "train.py", tmp_path / name, own]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]
        said[name] = [line.split(" ", 2)[1:] for line in result.stdout.splitlines() if line.startswith("rank")]
        learnt[name] = json.loads((tmp_path / name / "config.json").read_text())["losses"]
        files = sorted(p.name for p in (tmp_path / name).iterdir())
        assert files == ["config.json", "model.safetensors", "vocab.json"]
    assert [rank for rank, _ in said["one"]] == ["None"] and sorted(rank for rank, _ in said["two"]) == ["0", "1"]
    assert len({figures for _, figures in said["two"]}) == 1  # both processes know the whole validation part
    for figure in ("valid_loss", "perplexity"):
        np.testing.assert_allclose(learnt["one"][figure], learnt["two"][figure], rtol=.02)
    assert learnt["two"]["valid_loss"][-1] < learnt["two"]["valid_loss"][0]
