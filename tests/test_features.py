"xraycap.features: a store that is right, notices what has changed, and survives being killed."
import json
import os
import re
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import agree
from PIL import Image
from torch import nn

from xraycap import features
from xraycap.encoder import ImageEncoder
from xraycap.features import FeatureStore, StoreWriter, readable_features, store_features
from xraycap.files import locked
from xraycap.mesh import FINDINGS, mesh_findings
from xraycap.radiographs import open_radiograph, square


def fake_views(study, size=224):
    rng = np.random.default_rng(int(study.uid))
    return tuple(rng.integers(0, 256, (size, size), dtype=np.uint8) for _ in range(2))


class Cheap(ImageEncoder):
    "An encoder fast enough for many studies, one convolution, that counts the images it gets."
    images = 0
    def __init__(self, seed=0):
        super().__init__(None)
        torch.manual_seed(seed)
        self.features = nn.Conv2d(3, 1024, 32, stride=32)

    def spatial(self, x):
        Cheap.images += len(x)
        return super().spatial(x)


def table(uids, images="phantom"):
    frontal = [f"phantom-{u}-frontal" for u in uids]
    studies = pd.DataFrame({"uid": uids, "frontal": frontal, "mesh": [[] for _ in uids]})
    studies.attrs["images"] = images
    return studies


def encoded(studies, folder):
    "The store, and how many studies were encoded for it."
    Cheap.images = 0
    return store_features(studies, Cheap(), folder), Cheap.images // 2


@pytest.fixture
def views(monkeypatch):
    monkeypatch.setattr(features, "study_views", fake_views)


def test_store_holds_frontal_then_lateral(views, tmp_path):
    net = Cheap()
    studies = table([30, 10, 20])
    store = store_features(studies, net, tmp_path, bs=2)
    assert len(store) == 3 and 10 in store and np.int64(20) in store and 11 not in store
    for _, study in studies.iterrows():
        frontal, lateral = (torch.from_numpy(o)[None] for o in fake_views(study))
        with torch.no_grad(): want = torch.cat([net.spatial(frontal)[0], net.spatial(lateral)[0]])
        got = store[study.uid]
        assert got.shape == (98, 1024) and got.dtype == np.float16
        agree(torch.from_numpy(got).float(), want, 2e-3)
    np.testing.assert_array_equal(store[[20, 30]], np.stack([store[20], store[30]]))
    with pytest.raises(KeyError): store[11]
    np.testing.assert_array_equal(FeatureStore(store.path)[10], store[10])


def test_writing_into_an_array_leaves_the_file_alone(views, tmp_path):
    store = store_features(table([1]), Cheap(), tmp_path)
    before = store.path.read_bytes()
    store[1][:] = 0
    assert store.path.read_bytes() == before


def test_only_new_studies_are_encoded(views, tmp_path):
    for uids, new in (([1, 2, 3], 3), ([3, 1], 0), ([5, 2, 4], 2), ([1, 2, 3, 4, 5], 0)):
        assert encoded(table(uids), tmp_path)[1] == new


def test_two_batches_ahead_and_in_order(views, monkeypatch):
    begun = []
    monkeypatch.setattr(features, "study_views", lambda study, size: begun.append(study.uid) or fake_views(study))
    uids = list(range(11))
    for i, part in enumerate(features._batches(list(table(uids).itertuples()), 2)):
        assert [o.uid for o, _ in part] == uids[2 * i:2 * i + 2] and len(begun) <= 2 * (i + 3)
        for o, (_, views) in part: np.testing.assert_array_equal(views, fake_views(o))
    assert sorted(begun) == uids


def test_weights_and_image_source_have_their_own_store(views, tmp_path):
    a, b = store_features(table([1]), Cheap(0), tmp_path), store_features(table([1]), Cheap(1), tmp_path)
    c = store_features(table([1], "openi"), Cheap(0), tmp_path)
    assert len({a.path, b.path, c.path}) == 3 and not np.array_equal(a[1], b[1])


@pytest.fixture
def files(tmp_path, monkeypatch):
    "Three studies of two files each."
    studies = table([1, 2, 3], "openi").assign(lateral="")
    for i, study in studies.iterrows():
        for view in ("frontal", "lateral"):
            studies.loc[i, view] = str(tmp_path / f"{study.uid}-{view}.png")
            paint(studies.loc[i, view], 10 * study.uid)
    return studies


def paint(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (300, 224), dtype=np.uint8)).save(path)


def test_only_changed_images_are_encoded_again(files, tmp_path):
    old, n = encoded(files, tmp_path / "store")
    before = old[[1, 2, 3]].copy()
    assert n == 3 and encoded(files, tmp_path / "store")[1] == 0
    paint(files.lateral[1], 7)
    new, n = encoded(files, tmp_path / "store")
    assert n == 1 and new.path == old.path and len(new) == 3
    np.testing.assert_array_equal(new[[1, 3]], before[[0, 2]])
    np.testing.assert_array_equal(new[2][:49], before[1][:49])
    want = Cheap().spatial(torch.tensor(square(open_radiograph(files.lateral[1])))[None])[0]
    agree(torch.from_numpy(new[2][49:]).float(), want.detach(), 2e-3)
    np.testing.assert_array_equal(old[[1, 2, 3]], before)  # who has the old file open keeps it
    assert encoded(files, tmp_path / "store")[1] == 0
    paint(files.frontal[0], 8)
    assert encoded(files[1:], tmp_path / "store")[1] == 0 and encoded(files, tmp_path / "store")[1] == 1


def test_another_time_is_looked_at_once(files, tmp_path, monkeypatch):
    "Files that were touched are the same files; they are read once more, and then not again."
    store, _ = encoded(files, tmp_path / "store")
    os.utime(files.frontal[2], (1, 1))
    assert encoded(files, tmp_path / "store")[1] == 0
    monkeypatch.setattr(features, "image_checksum", lambda study: 1 / 0)
    again, n = encoded(files, tmp_path / "store")
    assert n == 0 and again.rows == store.rows


def swap(a, b):
    for old, new in (a, f"{a}.tmp"), (b, a), (f"{a}.tmp", b): os.rename(old, new)


@pytest.fixture
def patients(tmp_path):
    "Two patients, a folder each, whose files have the same name, size and time."
    studies = pd.DataFrame(dict(uid=[1, 2], frontal="", lateral="", mesh=[[], []]))
    for i, value in enumerate((50, 200)):
        path = tmp_path / f"p{i}" / "0.bmp"
        path.parent.mkdir()
        Image.new("L", (64, 64), value).save(path)
        os.utime(path, (1, 1))
        studies.loc[i, ["frontal", "lateral"]] = str(path)
    studies.attrs["images"] = "clinic/data.csv"
    assert len({os.path.getsize(o) for o in studies.frontal}) == 1
    return studies


def grey_views(study, size=224):
    "The grey of the file's middle; without the checks of `open_radiograph`."
    def view(path): return np.full((size, size), np.frombuffer(open(path, "rb").read(), np.uint8)[-2000])
    return view(study.frontal), view(study.lateral)


def changes(how, studies):
    frontal, other = studies.frontal
    if how == "the table's rows are swapped": return studies.assign(frontal=[other, frontal], lateral=[other, frontal])
    if how == "the folders are swapped": swap(os.path.dirname(frontal), os.path.dirname(other))
    if how == "the files are swapped": swap(frontal, other)
    if how == "a file is replaced in place":
        content = open(other, "rb").read()
        with open(frontal, "r+b") as f: f.write(content)
        os.utime(frontal, (1, 1))
    if how == "another folder with the same last two names":
        new = os.path.join(os.path.dirname(os.path.dirname(frontal)), "elsewhere", "p0")
        os.makedirs(new)
        os.rename(other, os.path.join(new, "0.bmp"))
        return studies.assign(**dict.fromkeys(("frontal", "lateral"), [os.path.join(new, "0.bmp"), frontal]))
    return studies


@pytest.mark.parametrize("how", [
    "the table's rows are swapped", "the folders are swapped", "the files are swapped", "a file is replaced in place",
    "another folder with the same last two names"])
def test_features_belong_to_the_file_that_is_named_now(patients, tmp_path, monkeypatch, how):
    monkeypatch.setattr(features, "study_views", grey_views)
    old, n = encoded(patients, tmp_path / "store")
    assert n == 2 and not np.array_equal(old[1], old[2])
    now = changes(how, patients)
    new, _ = encoded(now, tmp_path / "store")
    np.testing.assert_array_equal(new[[1, 2]], encoded(now, tmp_path / "empty")[0][[1, 2]])
    assert not np.array_equal(new[1], old[1])


def test_a_folder_that_has_moved_is_the_same_folder(patients, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "study_views", grey_views)
    encoded(patients, tmp_path / "store")
    os.rename(tmp_path / "p1", tmp_path / "p3")
    moved = str(tmp_path / "p3" / "0.bmp")
    here = patients.assign(frontal=[patients.frontal[0], moved], lateral=[patients.lateral[0], moved])
    assert encoded(here, tmp_path / "store")[1] == 0


def test_a_file_that_is_replaced_while_it_is_read(patients, tmp_path, monkeypatch):
    def replaced_meanwhile(study, size=224):
        if study.uid == 1: os.replace(patients.frontal[1], patients.frontal[0])
        return grey_views(study, size)
    monkeypatch.setattr(features, "study_views", replaced_meanwhile)
    encoded(patients[:1], tmp_path / "store")
    monkeypatch.setattr(features, "study_views", grey_views)
    assert encoded(patients[:1], tmp_path / "store")[1] == 1


# --- images that cannot be read

@pytest.fixture
def one_is_cut(files):
    with open(files.lateral[1], "r+b") as f: f.truncate(200)
    return files


def test_an_unreadable_image_is_named_listed_and_left_out(one_is_cut, tmp_path, capsys):
    store, failed = readable_features(one_is_cut, Cheap(), tmp_path / "store")
    assert sorted(store.rows) == [1, 3] and failed.uid.tolist() == [2]
    listed = pd.read_csv(store.path.with_suffix(".failed.csv"))
    assert listed.uid.tolist() == [2] and one_is_cut.lateral[1] in listed.problem[0]
    said = capsys.readouterr().out
    assert "1 of 3 studies cannot be read" in said and one_is_cut.lateral[1] in said and said.count("\n") == 1
    whole = store_features(one_is_cut[one_is_cut.uid != 2], Cheap(), tmp_path / "whole")
    np.testing.assert_array_equal(store[[1, 3]], whole[[1, 3]])
    paint(one_is_cut.lateral[1], 7)
    store, failed = readable_features(one_is_cut, Cheap(), tmp_path / "store")
    assert len(store) == 3 and failed.empty and not store.path.with_suffix(".failed.csv").exists()


def test_strict_stops_at_an_unreadable_image(one_is_cut, tmp_path):
    for strict in (lambda *a: store_features(*a), lambda *a: readable_features(*a, strict=True)):
        with pytest.raises(ValueError, match=re.escape(one_is_cut.lateral[1])):
            strict(one_is_cut, Cheap(), tmp_path / "store")


def test_features_of_what_an_image_was_before_it_was_cut_are_forgotten(files, tmp_path):
    encoded(files, tmp_path / "store")
    with open(files.lateral[1], "r+b") as f: f.truncate(200)
    store, failed = readable_features(files, Cheap(), tmp_path / "store")
    assert 2 not in store and failed.uid.tolist() == [2] and 2 not in FeatureStore(store.path)


def test_none_can_be_read(files, tmp_path):
    for path in [*files.frontal, *files.lateral]: open(path, "w").close()
    with pytest.raises(ValueError, match="None of the 3 studies can be read"):
        readable_features(files, Cheap(), tmp_path / "store")


@pytest.mark.parametrize("content", [
    "", "[]", "null", "{", '{"rows": []}', '{"rows": {"1": "x"}, "known": {"1": [1, "a"]}}', "\0" * 9,
    '{"rows": {"1": 0}, "known": {}}', '{"rows": {"1": 0}, "known": {"1": 5}}'])
def test_a_damaged_index_is_made_anew(views, tmp_path, content):
    store, n = encoded(table([1, 2]), tmp_path)
    whole = store.path.read_bytes()
    store.path.with_suffix(".json").write_text(content)
    if '"1"' not in content:
        with pytest.raises(ValueError, match="is damaged: delete it"): FeatureStore(store.path)
    again, n = encoded(table([1, 2]), tmp_path)
    assert n == 2 and again.path.read_bytes() == whole


def test_all_changed_starts_anew(files, tmp_path):
    size = encoded(files, tmp_path / "store")[0].path.stat().st_size
    for path in [*files.frontal, *files.lateral]: paint(path, 99)
    store, n = encoded(files, tmp_path / "store")
    assert n == 3 and store.path.stat().st_size == size


def test_changed_codes_and_another_phantom(views, tmp_path, monkeypatch):
    studies = table([1, 2])
    encoded(studies, tmp_path)
    studies.at[1, "mesh"] = ["Cardiomegaly/mild"]
    assert encoded(studies, tmp_path)[1] == 1
    features._phantom_version.cache_clear()
    with monkeypatch.context() as m:
        m.setattr(features, "phantom", lambda *args: [np.zeros((224, 224), np.uint8)] * 2)
        assert encoded(studies, tmp_path)[1] == 2
    features._phantom_version.cache_clear()


def test_phantom_version_has_every_finding(): assert mesh_findings(features._EVERYTHING) == set(FINDINGS)


def test_a_vanished_file_is_named(files, tmp_path):
    encoded(files, tmp_path / "store")
    os.unlink(files.frontal[1])
    with pytest.raises(FileNotFoundError, match=re.escape(files.frontal[1])): encoded(files, tmp_path / "store")
    assert encoded(files[files.uid != 2], tmp_path / "store")[1] == 0


def test_stopped_while_encoding_changed_images(files, tmp_path, monkeypatch):
    before = encoded(files, tmp_path / "store")[0][[1, 2, 3]].copy()
    for path in [*files.frontal, *files.lateral]: paint(path, 99)
    with monkeypatch.context() as m:
        m.setattr(Cheap, "spatial", lambda self, x: 1 / 0)
        with pytest.raises(ZeroDivisionError): encoded(files, tmp_path / "store")
    store, n = encoded(files, tmp_path / "store")
    assert n == 3 and not any(np.array_equal(store[u], b) for u, b in zip([1, 2, 3], before))


def test_the_index_follows_changed_images_too(files, tmp_path, monkeypatch):
    encoded(files, tmp_path / "store")
    for path in [*files.frontal, *files.lateral]: paint(path, 99)
    written, real = [], features.whole_file
    def whole_file(path):
        written.append(path)
        return real(path)
    monkeypatch.setattr(features, "whole_file", whole_file)
    store_features(files, Cheap(), tmp_path / "store", bs=1)
    assert len(written) >= 3


def test_a_writer_keeps_what_it_appends(views, tmp_path):
    "Rows that the index does not name yet are written over by the next writer."
    studies, rows = table([1, 2, 3]), [bytes([i]) * features.ROW_BYTES for i in range(3)]
    path = tmp_path / "store.f16"
    with StoreWriter(path, studies) as writer:
        writer.append({"1": [writer.stamps["1"], "one"]}, rows[0])
        writer.save()
        writer.append({"2": [writer.stamps["2"], "two"]}, rows[1])  # and is stopped here
    again = StoreWriter(path, studies)
    assert [again.lacks(o) for o in studies.itertuples()] == [False, True, True] and again.end == 1
    with again:
        again.append({uid: [again.stamps[uid], uid] for uid in ("3", "2")}, rows[2] + rows[1])
        again.save()
    assert path.read_bytes() == rows[0] + rows[2] + rows[1]
    assert FeatureStore(path).rows == {1: 0, 3: 1, 2: 2}


HOLD = """
import sys, time
from pathlib import Path
from xraycap.files import locked
print("here", flush=True)
with locked(Path(sys.argv[1])):
    print("inside", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time(tmp_path):
    "Another process gets the lock when this one leaves it, and when the one that holds it is killed."
    path = tmp_path / "store.f16"
    with locked(path):
        process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "here\n"
        assert not select.select([process.stdout], [], [], .3)[0]
    assert process.stdout.readline() == "inside\n"
    process.kill()
    with locked(path): process.wait()


def test_a_store_of_an_earlier_version_is_made_again(views, tmp_path):
    store = encoded(table([1, 2]), tmp_path)[0]
    index = store.path.with_suffix(".json")
    for name in "pixels", "seen":
        index.write_text(json.dumps({"rows": store.rows, name: {"1": 5, "2": 6}}))
        assert encoded(table([1]), tmp_path)[1] == 1 and len(FeatureStore(store.path)) == 1


def test_a_shortened_file_is_filled_again(views, tmp_path):
    store = store_features(table([1, 2]), Cheap(), tmp_path)
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:1000])
    assert store_features(table([1, 2]), Cheap(), tmp_path).path.read_bytes() == whole


def test_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="store_features"): FeatureStore(tmp_path / "none.f16")


def test_no_study(views, tmp_path):
    with pytest.raises(ValueError, match="no study"): store_features(table([]), Cheap(), tmp_path)


FILL = """
import sys, time
sys.path.insert(0, sys.argv[1])
from xraycap import features
from test_features import Cheap, fake_views, table
def slow_views(study, size=224):
    time.sleep(.05)
    return fake_views(study, size)
features.study_views = slow_views
features.store_features(table(list(range(40))), Cheap(), sys.argv[2], bs=4)
"""


def test_killed_and_run_again(views, tmp_path):
    whole = store_features(table(list(range(40))), Cheap(), tmp_path / "whole", bs=4)
    command = [sys.executable, "-c", FILL, os.path.dirname(__file__), tmp_path / "cut"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    index = tmp_path / "cut" / whole.path.with_suffix(".json").name
    def kept(): return len(json.loads(index.read_text())["rows"]) if index.exists() else 0
    while process.poll() is None and kept() < 8: time.sleep(.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 8 <= len(FeatureStore(index.with_suffix(".f16"))) < 40
    again = store_features(table(list(range(40))), Cheap(), tmp_path / "cut", bs=4)
    assert again.path.read_bytes() == whole.path.read_bytes() and again.rows == whole.rows
