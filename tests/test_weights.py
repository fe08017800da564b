"xraycap.weights: every kind of weights file against the network that it came from, and files that are none."
import os
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import h5py
import numpy as np
import pytest
import torch
import torchxrayvision as xrv
from conftest import IMAGES, agree, seen
from safetensors.torch import save_file
from torch import nn
from torchvision.models import densenet121

from xraycap import weights
from xraycap.encoder import ImageEncoder, load_finding_net

MEAN, STD = (torch.tensor(o).view(3, 1, 1) for o in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


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
    with torch.no_grad(): return ImageEncoder(weights).spatial(IMAGES)


class Trap:
    "A pickle that makes a folder when it is run."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


def test_prepared_floats_are_taken_as_they_are(theirs, tmp_path):
    torch.save(theirs[0].state_dict(), tmp_path / "w.pt")
    x = ((IMAGES / 255)[:, None] - MEAN) / STD
    with torch.no_grad(): agree(ImageEncoder(tmp_path / "w.pt").spatial(x), theirs[1])


@pytest.mark.parametrize("legacy", [False, True])
def test_imagenet_file(theirs, tmp_path, legacy):
    path = tmp_path / "densenet121-a639ec97.pth"
    torch.save({old(k): v for k, v in theirs[0].state_dict().items()}, path, _use_new_zipfile_serialization=not legacy)
    agree(spatial(path), theirs[1])


def chexnet_torch(net, path):
    "A checkpoint as arnoweng/CheXNet's: legacy pickle, DataParallel's prefix, old names, 14 outputs, no counters."
    state = {k: v for k, v in net.state_dict().items() if "features" in k and not k.endswith("tracked")}
    state |= {"classifier.0.weight": torch.zeros(14, 1024), "classifier.0.bias": torch.zeros(14)}
    state = {f"module.densenet121.{old(k)}": v for k, v in state.items()}
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4}]}
    saved = {"epoch": 3, "best_loss": 0.1, "state_dict": state, "optimizer": optimizer}
    torch.save(saved, path, _use_new_zipfile_serialization=False)


def test_chexnet_torch(theirs, tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="xraycap download weights"): ImageEncoder("chexnet-torch")
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
    nih, url = xrv.models.model_urls["densenet121-res224-nih"], f"http://127.0.0.1:{server.server_port}/nih.pt"
    monkeypatch.setitem(nih, "weights_url", url)
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
        with torch.no_grad(): agree(ImageEncoder("xrv-nih").pooled(IMAGES), want)
        (served / "nih.pt").unlink(missing_ok=True)  # the second time it is there already
    assert [o.name for o in (tmp_path / "home" / "weights").iterdir()] == ["xrv-nih.safetensors"]


def test_xrv_release_that_is_no_model(served, tmp_path):
    (served / "nih.pt").write_text("<html>moved</html>")
    with pytest.raises(FileNotFoundError, match="a page or a text in the place"): ImageEncoder("xrv-nih")
    (served / "nih.pt").write_bytes(b"\x80\x02moved")
    with pytest.raises(ValueError, match="is not a DenseNet-121"): ImageEncoder("xrv-nih")
    assert not list((tmp_path / "home" / "weights").iterdir())


def test_every_xrv_name_is_in_their_table():
    names = [name.removeprefix("xrv-") for name in weights.WEIGHTS if name.startswith("xrv-")]
    assert len(names) == 7
    for name in names: assert "densenet" in xrv.models.model_urls[f"densenet121-res224-{name}"]["weights_url"]


@pytest.mark.parametrize("legacy", [False, True])
def test_no_pickle_runs(tmp_path, legacy):
    trap = {"state_dict": {"features.conv0.weight": Trap(tmp_path / "ran")}}
    torch.save(trap, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="safe loader refuses"): ImageEncoder(tmp_path / "w.pt")
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
        if not places: continue
        yield f"{places}_bn", f"transition{block}.norm"
        yield f"{places}_conv", f"transition{block}.conv"
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
            layers[name] = dict(gamma=get("weight"), beta=get("bias"), moving_mean=get("running_mean"),
                                moving_variance=get("running_var"))
    return layers | {"predictions": {"kernel": np.zeros((1024, 14), "f4"), "bias": np.zeros(14, "f4")}}


@pytest.mark.parametrize("inside", ["", "model_weights", "densenet121"])
def test_keras_layout(theirs, tmp_path, monkeypatch, inside):
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path))
    write_keras2(as_keras(theirs[0]), tmp_path / "brucechou1983_CheXNet_Keras_0.3.0_weights.h5", inside)
    agree(spatial("chexnet-keras"), theirs[1], 1e-3)  # Keras's epsilon is another


def test_keras3_layout(theirs, tmp_path):
    "As Keras 3's save_weights: numbered arrays in a group whose attribute is the layer's name; whole models nest it."
    with h5py.File(tmp_path / "a.weights.h5", "w") as f:
        for i, (layer, variables) in enumerate(as_keras(theirs[0]).items()):
            kind = "conv2d" if "kernel" in variables else "batch_normalization"
            group = f.create_group(f"layers/functional/layers/{kind}_{i}/vars")
            group.attrs["name"] = layer.replace("/", "_")
            for k, value in enumerate(variables.values()): group[str(k)] = value
    agree(spatial(tmp_path / "a.weights.h5"), theirs[1], 1e-3)


@pytest.mark.parametrize("key", ["model_state_dict", "model", "net", "state_dict", "my_network"])
def test_checkpoints_keep_the_network_under_several_keys(theirs, tmp_path, key):
    torch.save({"epoch": 3, key: theirs[0].state_dict(), "optimizer": {"lr": .1}}, tmp_path / "w.pth")
    agree(spatial(tmp_path / "w.pth"), theirs[1])


def test_keys_are_named_where_it_is_not_clear_which_one(theirs, tmp_path):
    state = theirs[0].state_dict()
    for saved in ({"teacher": state, "student": state}, {"epoch": 3, "student": {"fc.weight": torch.zeros(3)}}):
        torch.save(saved, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=f"model or net|state_dict, model, net.* {', '.join(saved)}") as e:
            ImageEncoder(tmp_path / "w.pth")
        assert str(tmp_path / "w.pth") in str(e.value)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is a folder or a device"): ImageEncoder(tmp_path / "pipe")
    with pytest.raises(ValueError, match="The weights' name is empty"): ImageEncoder("")


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
model.save_weights(sys.argv[1] + ".weights.h5")
np.savez(sys.argv[1], images=images, y=model.predict(x.astype("f4"), verbose=0), **variables)
"""


@pytest.mark.slow
def test_keras_gives_the_same_features(tmp_path):
    "Keras's own DenseNet121 (torch backend, in its own process) against ours on the file Keras 2 would have written."
    subprocess.run([sys.executable, "-c", KERAS_SIDE, tmp_path / "keras.npz"], check=True)
    saved = np.load(tmp_path / "keras.npz")
    layers = {}
    for key in saved.files:
        if "|" not in key: continue
        layer, variable = key.split("|")
        if layer.startswith("conv1_"): layer = layer.replace("conv1_", "conv1/")
        layers.setdefault(layer, {})[variable] = saved[key]
    assert sorted(layers) == sorted(name for name, _ in keras_layers())
    write_keras2(layers, tmp_path / "w.h5")
    with torch.no_grad(): got = ImageEncoder(tmp_path / "w.h5").spatial(torch.from_numpy(saved["images"])).numpy()
    keras3 = ImageEncoder(f"{tmp_path / 'keras.npz'}.weights.h5").state_dict()
    keras2 = ImageEncoder(tmp_path / "w.h5").state_dict()
    for key, tensor in keras2.items(): assert torch.equal(tensor, keras3[key]), key
    want = saved["y"].reshape(2, 49, 1024)
    print(f"largest difference {np.abs(got - want).max():.2g} where the largest value is {want.max():.3g}")
    assert np.abs(got - want).max() < 1e-5 * want.max()


def test_bad_files_get_a_sentence(theirs, tmp_path):
    write_keras2(as_keras(theirs[0]), tmp_path / "whole.h5")
    torch.save(theirs[0].state_dict(), tmp_path / "whole.pt")
    save_file({k: v.contiguous() for k, v in theirs[0].state_dict().items()}, tmp_path / "whole.safetensors")
    for kind in ("h5", "pt", "safetensors"):
        (tmp_path / f"cut.{kind}").write_bytes((tmp_path / f"whole.{kind}").read_bytes()[:100_000])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("these are no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(densenet121(weights=None).features.denseblock1.state_dict(), tmp_path / "part.pt")
    nan = theirs[0].state_dict() | {"features.norm5.bias": torch.full((1024,), float("nan"))}
    torch.save(nan, tmp_path / "nan.pt")
    torch.save(theirs[0].state_dict() | {"features.norm5.bias": torch.zeros(2208)}, tmp_path / "shape.pt")
    bad = "cut.h5 cut.pt cut.safetensors empty.pt text.pt list.pt part.pt nan.pt shape.pt .".split()
    for name in bad:
        with pytest.raises(ValueError) as e: ImageEncoder(tmp_path / name)
        assert str(tmp_path) in str(e.value) and "\n" not in str(e.value), name
    with pytest.raises(FileNotFoundError, match="no weights file"): ImageEncoder(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="is no weights' name"): ImageEncoder("chexnet")


def test_keras_without_h5py(theirs, tmp_path, monkeypatch):
    write_keras2(as_keras(theirs[0]), tmp_path / "w.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'xraycap[keras]'")): ImageEncoder(tmp_path / "w.h5")


def test_the_weights_in_the_package():
    net, findings = load_finding_net()
    assert weights.chest_file().stat().st_size < 15e6 and len(findings) == net.head.out_features > 10
    agree(spatial("chest"), net.encoder.spatial(IMAGES).detach())


def test_missing_weights_of_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "assets", tmp_path)
    with pytest.raises(FileNotFoundError, match="install xraycap again"): ImageEncoder()


def test_weights_of_an_earlier_version():
    with pytest.raises(ValueError, match="no longer part of xraycap: 'chest' takes their place.*trained anew") as e:
        ImageEncoder("phantom")
    assert "\n" not in str(e.value) and "phantom" not in weights.WEIGHTS


def test_default_weights_where_nothing_can_be_fetched(served, tmp_path, monkeypatch, capsys):
    "The file is not there; then it is; then it is here."
    assert weights.default_weights("phantom") == "chest"
    assert weights.default_weights("openi") == "chest"
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if not line.startswith("127.0.0.1 - ")]  # what the server says itself
    assert out == "" and len(said) == 1
    assert said[0].startswith("'chest' is taken as encoder") and "nih.pt answers 404" in said[0]
    torch.save(xrv.models.DenseNet(), served / "nih.pt")
    assert weights.default_weights("clinic/data.csv") == "xrv-nih"
    (served / "nih.pt").unlink()
    assert weights.default_weights("openi") == "xrv-nih" and "chest" not in capsys.readouterr().err
    monkeypatch.setattr(weights, "fetch", lambda url, path: pytest.fail("simulated images need no download"))
    monkeypatch.setenv("XRAYCAP_HOME", str(tmp_path / "empty"))
    assert weights.default_weights("phantom") == "chest"
