"xraycap.encoder: every kind of weights file against the network it came from, and a store that survives being killed."
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import torchxrayvision as xrv
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import densenet121

from xraycap import features, weights
from xraycap.encoder import CheXNet, FindingNet, load_finding_net, save_encoder
from xraycap.fast import fused
from xraycap.features import FeatureStore, store_features
from xraycap.weights import load_weights
from xraycap.mesh import FINDINGS, mesh_findings
from xraycap.radiographs import open_radiograph, square

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8))
MEAN, STD = (torch.tensor(o).view(3, 1, 1) for o in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def seen(model, x):
    "Give the batch norms statistics of `x`, and scales and shifts of their own."
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
    model.train().features(x)
    return model.eval()


@pytest.fixture(scope="module")
def theirs():
    "torchvision's own whole network, and what it makes of the test images, prepared by hand: (3, 4, 1024)."
    torch.manual_seed(0)
    x = ((IMAGES / 255).unsqueeze(1).repeat(1, 3, 1, 1) - MEAN) / STD
    net = seen(densenet121(weights=None), x)
    with torch.no_grad(): y = torch.relu(net.features(x))
    return net, y.permute(0, 2, 3, 1).reshape(3, 4, 1024)


def old(key): return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key)


def spatial(weights):
    with torch.no_grad(): return CheXNet(weights).spatial(IMAGES)


def agree(got, want, tol=1e-4): assert (got - want).abs().max() < tol * want.abs().max()


class Trap:
    "A pickle that makes a folder when it is run."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


def test_shapes_and_pooled():
    net = CheXNet(None).eval()
    x = torch.zeros(2, 224, 224, dtype=torch.uint8)
    with torch.no_grad(): s, p, m = net.spatial(x), net.pooled(x), net(x)
    assert s.shape == (2, 49, 1024) and p.shape == (2, 1024) and s.min() >= 0
    torch.testing.assert_close(s.mean(1), p)
    torch.testing.assert_close(s[1, 7 * 5 + 2], m[1, :, 5, 2])


def test_prepared_floats_are_taken_as_they_are(theirs, tmp_path):
    torch.save(theirs[0].state_dict(), tmp_path / "w.pt")
    with torch.no_grad(): agree(CheXNet(tmp_path / "w.pt").spatial(((IMAGES / 255)[:, None] - MEAN) / STD), theirs[1])


@pytest.mark.parametrize("legacy", [False, True])
def test_imagenet_file(theirs, tmp_path, legacy):
    path = tmp_path / "densenet121-a639ec97.pth"
    torch.save({old(k): v for k, v in theirs[0].state_dict().items()}, path, _use_new_zipfile_serialization=not legacy)
    agree(spatial(path), theirs[1])


def chexnet_torch(net, path):
    "A checkpoint as arnoweng/CheXNet's: legacy pickle, DataParallel's prefix, old names, 14 outputs, no batch counters."
    state = {"module.densenet121." + old(k): v for k, v in net.state_dict().items() if "features" in k and not k.endswith("tracked")}
    state |= {"module.densenet121.classifier.0.weight": torch.zeros(14, 1024), "module.densenet121.classifier.0.bias": torch.zeros(14)}
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4}]}
    torch.save({"epoch": 3, "best_loss": 0.1, "state_dict": state, "optimizer": optimizer}, path, _use_new_zipfile_serialization=False)


def test_chexnet_torch(theirs, tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="xraycap download weights"): CheXNet("chexnet-torch")
    chexnet_torch(theirs[0], tmp_path / "chexnet.pth.tar")
    agree(spatial("chexnet-torch"), theirs[1])


@pytest.fixture
def served(tmp_path, monkeypatch):
    "A folder whose file `nih.pt` a server on loopback gives out as torchxrayvision's release of xrv-nih."
    folder = tmp_path / "served"
    folder.mkdir()
    server = HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(xrv.models.model_urls["densenet121-res224-nih"], "weights_url", f"http://127.0.0.1:{server.server_port}/nih.pt")
    yield folder
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("legacy", [False, True])
def test_xrv_is_fetched_converted_and_kept(served, tmp_path, legacy):
    scaled = torch.from_numpy(xrv.utils.normalize(IMAGES.numpy(), 255))[:, None]
    net = seen(xrv.models.DenseNet(), scaled)
    torch.save(net, served / "nih.pt", _use_new_zipfile_serialization=not legacy)
    with torch.no_grad(): want = net.features2(scaled)
    for _ in range(2):
        with torch.no_grad(): agree(CheXNet("xrv-nih").pooled(IMAGES), want)
        (served / "nih.pt").unlink(missing_ok=True)  # the second time it is there already
    assert [o.name for o in (tmp_path / "home" / "weights").iterdir()] == ["xrv-nih.safetensors"]


def test_xrv_release_that_is_no_model(served, tmp_path):
    (served / "nih.pt").write_text("<html>moved</html>")
    with pytest.raises(ValueError, match="is not a DenseNet-121"): CheXNet("xrv-nih")
    assert not list((tmp_path / "home" / "weights").iterdir())


def test_every_xrv_name_is_in_their_table():
    for name in weights._XRV: assert "densenet" in xrv.models.model_urls["densenet121-res224-" + name.removeprefix("xrv-")]["weights_url"]


@pytest.mark.parametrize("legacy", [False, True])
def test_no_pickle_runs(tmp_path, legacy):
    trap = {"state_dict": {"features.conv0.weight": Trap(tmp_path / "ran")}}
    torch.save(trap, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="safe loader refuses"): CheXNet(tmp_path / "w.pt")
    assert weights._read_pickled_model(tmp_path / "w.pt") == {}
    model = nn.Sequential(nn.Linear(2, 2))
    model.trap = Trap(tmp_path / "ran")
    torch.save(model, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    torch.testing.assert_close(weights._read_pickled_model(tmp_path / "m.pt")["0.weight"], model[0].weight.detach())
    assert not (tmp_path / "ran").exists()


def keras_layers():
    "Keras DenseNet121's layers with weights, in Keras's order, each with its place in torchvision's network."
    yield "conv1/conv", "conv0"
    yield "conv1/bn", "norm0"
    for block, (size, places) in enumerate(zip((6, 12, 24, 16), ("pool2", "pool3", "pool4", None)), 1):
        for i in range(1, size + 1):
            at = f"denseblock{block}.denselayer{i}."
            for k, t in (("0_bn", "norm1"), ("1_conv", "conv1"), ("1_bn", "norm2"), ("2_conv", "conv2")):
                yield f"conv{block + 1}_block{i}_{k}", at + t
        if places: yield from ((f"{places}_{k}", f"transition{block}.{t}") for k, t in (("bn", "norm"), ("conv", "conv")))
    yield "bn", "norm5"


def write_keras2(layers, path, inside=""):
    "`layers` {name: {variable: array}} as Keras 2's save_weights wrote an .h5: groups, `layer_names`, `weight_names`."
    with h5py.File(path, "w") as f:
        top = f.create_group(inside) if inside else f
        top.attrs["layer_names"] = [name.encode() for name in layers]
        top.attrs["backend"], top.attrs["keras_version"] = b"tensorflow", b"2.1.6"
        for name, variables in layers.items():
            group = top.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{v}:0".encode() for v in variables]
            for v, value in variables.items(): group.create_dataset(f"{name}/{v}:0", data=value)


def as_keras(net):
    layers, state = {"input_1": {}}, net.state_dict()
    for name, place in keras_layers():
        get = lambda part: state[f"features.{place}.{part}"].numpy()
        if name.endswith("conv"): layers[name] = {"kernel": get("weight").transpose(2, 3, 1, 0)}
        else:
            layers[name] = dict(gamma=get("weight"), beta=get("bias"), moving_mean=get("running_mean"), moving_variance=get("running_var"))
    return layers | {"predictions": {"kernel": np.zeros((1024, 14), "f4"), "bias": np.zeros(14, "f4")}}


@pytest.mark.parametrize("inside", ["", "model_weights", "densenet121"])
def test_keras_layout(theirs, tmp_path, monkeypatch, inside):
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path))
    write_keras2(as_keras(theirs[0]), tmp_path / "brucechou1983_CheXNet_Keras_0.3.0_weights.h5", inside)
    agree(spatial("chexnet-keras"), theirs[1], 1e-3)  # Keras's epsilon is another


KERAS_SIDE = """
import os, sys
os.environ["KERAS_BACKEND"] = "torch"
import keras, numpy as np
rng = np.random.default_rng(0)
model = keras.applications.DenseNet121(weights=None, include_top=False, input_shape=(224, 224, 3))
for layer in model.layers:
    for v in layer.weights:
        if v.name == "moving_variance": v.assign(rng.uniform(0.5, 1.5, v.shape))
        elif v.name == "gamma": v.assign(rng.uniform(0.2, 0.6, v.shape))
        elif v.name in ("beta", "moving_mean"): v.assign(rng.uniform(-0.3, 0.3, v.shape))
images = rng.integers(0, 256, (2, 224, 224)).astype("u1")
x = (images[..., None] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
variables = {f"{o.name}|{v.name}": keras.ops.convert_to_numpy(v.value) for o in model.layers for v in o.weights}
np.savez(sys.argv[1], images=images, y=model.predict(x.astype("f4"), verbose=0), **variables)
"""


@pytest.mark.slow
def test_keras_gives_the_same_features(tmp_path):
    "Keras's own DenseNet121 (torch backend, in a process of its own) against CheXNet on the file Keras 2 would have written."
    subprocess.run([sys.executable, "-c", KERAS_SIDE, tmp_path / "keras.npz"], check=True)
    saved = np.load(tmp_path / "keras.npz")
    layers = {}
    for key in saved.files:
        if "|" not in key: continue
        layer, variable = key.split("|")
        layers.setdefault(layer.replace("conv1_", "conv1/") if layer.startswith("conv1_") else layer, {})[variable] = saved[key]
    assert sorted(layers) == sorted(name for name, _ in keras_layers())
    write_keras2(layers, tmp_path / "w.h5")
    with torch.no_grad(): got = CheXNet(tmp_path / "w.h5").spatial(torch.from_numpy(saved["images"])).numpy()
    want = saved["y"].reshape(2, 49, 1024)
    print(f"largest difference {np.abs(got - want).max():.2g} where the largest value is {want.max():.3g}")
    assert np.abs(got - want).max() < 1e-5 * want.max()


def test_bad_files_get_a_sentence(theirs, tmp_path):
    write_keras2(as_keras(theirs[0]), tmp_path / "whole.h5")
    torch.save(theirs[0].state_dict(), tmp_path / "whole.pt")
    save_file({k: v.contiguous() for k, v in theirs[0].state_dict().items()}, tmp_path / "whole.safetensors")
    for kind in ("h5", "pt", "safetensors"): (tmp_path / f"cut.{kind}").write_bytes((tmp_path / f"whole.{kind}").read_bytes()[:100_000])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("these are no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(densenet121(weights=None).features.denseblock1.state_dict(), tmp_path / "part.pt")
    nan = theirs[0].state_dict() | {"features.norm5.bias": torch.full((1024,), float("nan"))}
    torch.save(nan, tmp_path / "nan.pt")
    torch.save(theirs[0].state_dict() | {"features.norm5.bias": torch.zeros(2208)}, tmp_path / "shape.pt")
    bad = ["cut.h5", "cut.pt", "cut.safetensors", "empty.pt", "text.pt", "list.pt", "part.pt", "nan.pt", "shape.pt", "."]
    for name in bad:
        with pytest.raises(ValueError) as e: CheXNet(tmp_path / name)
        assert str(tmp_path) in str(e.value) and "\n" not in str(e.value), name
    with pytest.raises(FileNotFoundError, match="no weights file"): CheXNet(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="is no weights' name"): CheXNet("chexnet")


def test_keras_without_h5py(theirs, tmp_path, monkeypatch):
    write_keras2(as_keras(theirs[0]), tmp_path / "w.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'xraycap[keras]'")): CheXNet(tmp_path / "w.h5")


def test_phantom_weights_in_the_package():
    net, findings = load_finding_net()
    assert weights.phantom_file().stat().st_size < 15e6 and len(findings) == net.head.out_features > 10
    agree(spatial("phantom"), net.encoder.spatial(IMAGES).detach())


def test_missing_phantom_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "assets", tmp_path)
    with pytest.raises(FileNotFoundError, match="install xraycap again"): CheXNet()


def test_finding_net_round_trip(tmp_path):
    net = seen_net(5)
    path = tmp_path / "net.safetensors"
    save_encoder(net, path, list("abcde"), auroc="0.9")
    assert all(v.dtype == torch.float16 for v in load_file(path).values()) and path.stat().st_size < 15e6
    back, findings = load_finding_net(path)
    assert findings == list("abcde")
    x = torch.randint(0, 256, (2, 2, 96, 64), dtype=torch.uint8)
    with torch.no_grad():
        agree(back(x), net(x), 0.02)
        agree(CheXNet(path).pooled(x[:, 1]), net.encoder.pooled(x[:, 1]), 0.02)
        both = torch.cat([net.encoder.pooled(x[:, 0]), net.encoder.pooled(x[:, 1])], 1)
        torch.testing.assert_close(net(x), both @ net.head.weight.T + net.head.bias)
    save_file(load_weights(path), tmp_path / "headless.safetensors")
    with pytest.raises(ValueError, match="without findings"): load_finding_net(tmp_path / "headless.safetensors")


def seen_net(n):
    torch.manual_seed(1)
    net = FindingNet(n)
    seen(net.encoder, net.encoder.prepare(IMAGES))
    return net.eval()


def test_finding_net_trains():
    net = FindingNet(3).train()
    net(torch.randint(0, 256, (2, 2, 64, 64), dtype=torch.uint8)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("grey", [True, False])
def test_fused_is_the_same_function(onednn, grey, monkeypatch):
    net = seen_net(1).encoder
    if grey: net.features.conv0, net.mean, net.std = nn.Conv2d(1, 64, 7, 2, 3, bias=False), torch.full((1, 1, 1), 127.5), torch.full((1, 1, 1), 0.125)
    if grey: seen(net, net.prepare(IMAGES))
    with torch.no_grad():  # scales of all signs, and dead channels
        for name, p in net.named_parameters():
            if "norm" in name and name.endswith("weight"): p[::5] *= -1; p[1::7] = 0; p[2::11] = 1e-30
    before = {k: v.clone() for k, v in net.state_dict().items()}
    def absent(*_): raise AttributeError
    if not onednn: monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", absent)
    fast = fused(net)
    monkeypatch.undo()
    assert (fast.blocks[0][0][1].packed is not None) == (onednn and torch.backends.mkldnn.is_available())
    for images in (IMAGES, torch.cat([IMAGES, 255 - IMAGES]), IMAGES[:1, :, :32], IMAGES.repeat(1, 2, 3)):
        with torch.no_grad():
            want = net.spatial(images)
            agree(fast.spatial(images), want, 1e-5)
            torch.testing.assert_close(fast.pooled(images), want.mean(1), atol=1e-5 * want.max().item(), rtol=1e-5)
    assert all((before[k] == v).all() for k, v in net.state_dict().items())
    with pytest.raises(ValueError, match="expected uint8"): fast(net.prepare(IMAGES))


# The store

def fake_views(study, size=224):
    rng = np.random.default_rng(int(study.uid))
    return tuple(rng.integers(0, 256, (size, size), dtype=np.uint8) for _ in range(2))


class Cheap(CheXNet):
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
    studies = pd.DataFrame({"uid": uids, "frontal": [f"phantom-{u}-frontal" for u in uids], "mesh": [[] for _ in uids]})
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
    net = seen_net(1).encoder
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
    assert [encoded(table(uids), tmp_path)[1] for uids in ([1, 2, 3], [3, 1], [5, 2, 4], [1, 2, 3, 4, 5])] == [3, 0, 2, 0]


def test_two_batches_ahead_and_in_order(views, monkeypatch):
    begun = []
    monkeypatch.setattr(features, "study_views", lambda study, size: begun.append(study.uid) or fake_views(study))
    uids = list(range(11))
    for i, (part, views) in enumerate(features._batches(table(uids), 2)):
        assert [o.uid for o in part] == uids[2 * i:2 * i + 2] and len(begun) <= 2 * (i + 3)
        np.testing.assert_array_equal(views, [fake_views(o) for o in part])
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


def paint(path, grey): Image.fromarray(np.random.default_rng(grey).integers(0, 256, (300, 224), dtype=np.uint8)).save(path)


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


def test_same_name_size_other_time(files, tmp_path):
    encoded(files, tmp_path / "store")
    os.utime(files.frontal[2], (1, 1))
    assert encoded(files, tmp_path / "store")[1] == 1


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


def test_a_store_of_an_earlier_version_is_made_again(views, tmp_path):
    store = encoded(table([1, 2]), tmp_path)[0]
    index = store.path.with_suffix(".json")
    index.write_text(json.dumps({"rows": store.rows, "pixels": {"1": 5, "2": 6}}))
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
from test_encoder import Cheap, fake_views, table
def slow_views(study, size=224):
    time.sleep(.05)
    return fake_views(study, size)
features.study_views = slow_views
features.store_features(table(list(range(40))), Cheap(), sys.argv[2], bs=4)
"""


def test_killed_and_run_again(views, tmp_path):
    whole = store_features(table(list(range(40))), Cheap(), tmp_path / "whole", bs=4)
    process = subprocess.Popen([sys.executable, "-c", FILL, os.path.dirname(__file__), tmp_path / "cut"], stderr=subprocess.DEVNULL)
    index = tmp_path / "cut" / whole.path.with_suffix(".json").name
    while process.poll() is None and not (index.exists() and len(json.loads(index.read_text())["rows"]) >= 8): time.sleep(.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 8 <= len(FeatureStore(index.with_suffix(".f16"))) < 40
    again = store_features(table(list(range(40))), Cheap(), tmp_path / "cut", bs=4)
    assert again.path.read_bytes() == whole.path.read_bytes() and again.rows == whole.rows
