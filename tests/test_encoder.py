"xraycap.encoder: shapes, findings named and placed, and the same function made fast."
import pytest
import torch
from conftest import IMAGES, agree, seen
from safetensors.torch import load_file, save_file
from torch import nn

import xraycap.encoder
from xraycap.encoder import FindingNet, ImageEncoder, chosen_device, finding_maps, load_finding_net, save_encoder
from xraycap.fast import fused
from xraycap.weights import load_weights

def test_shapes_and_pooled():
    net = ImageEncoder(None).eval()
    x = torch.zeros(2, 224, 224, dtype=torch.uint8)
    with torch.no_grad(): s, p, m = net.spatial(x), net.pooled(x), net(x)
    assert s.shape == (2, 49, 1024) and p.shape == (2, 1024) and s.min() >= 0
    torch.testing.assert_close(s.mean(1), p)
    torch.testing.assert_close(s[1, 7 * 5 + 2], m[1, :, 5, 2])


def test_its_earlier_name(): assert xraycap.encoder.CheXNet is ImageEncoder


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
        agree(ImageEncoder(path).pooled(x[:, 1]), net.encoder.pooled(x[:, 1]), 0.02)
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
    if grey:
        net.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        net.mean, net.std = torch.full((1, 1, 1), 127.5), torch.full((1, 1, 1), 0.125)
        seen(net, net.prepare(IMAGES))
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


def test_maps_add_up_to_the_logits():
    "By hand, place by place; other image sizes have other numbers of places."
    net, rng = seen_net(5), torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (3, 2, 96, 64), dtype=torch.uint8, generator=rng)
    with torch.no_grad():
        features = net.encoder.spatial(x.flatten(0, 1)).reshape(3, 12, 1024)
        want = net(x)
    maps = finding_maps(features, net.head)
    assert maps.shape == (3, 12, 5) and not maps.requires_grad
    for place in range(12):
        view = slice(1024 * (place >= 6), 1024 * (place >= 6) + 1024)
        torch.testing.assert_close(maps[1, place], net.head.weight.detach()[:, view] @ features[1, place])
    logits = maps[:, :6].mean(1) + maps[:, 6:].mean(1) + net.head.bias.detach()
    torch.testing.assert_close(logits, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("there, auto", [
    ((), "cpu"), (("cuda",), "cuda"), (("mps",), "mps"), (("cuda", "mps"), "cuda")])
def test_the_device_is_chosen_in_one_place(monkeypatch, there, auto):
    monkeypatch.setattr(xraycap.encoder, "_chosen", ["auto"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: "cuda" in there)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: "mps" in there)
    assert chosen_device().type == auto
    for name in "cpu", "cuda", "mps":
        if name in ("cpu", *there): assert chosen_device(name) == chosen_device() == torch.device(name)
        else:
            with pytest.raises(ValueError, match=f"no device '{name}' here; it finds: .*cpu"): chosen_device(name)
    assert chosen_device("auto").type == auto


def test_every_step_stays_on_the_device_of_the_weights():
    "The meta device has shapes and no numbers, and fails where it meets another one."
    x = torch.zeros(3, 224, 224, dtype=torch.uint8, device="meta")
    net = ImageEncoder(None).eval().to("meta")
    with torch.inference_mode():
        for encoder in net, fused(net):
            assert encoder.spatial(x).device.type == encoder.pooled(x).device.type == "meta"
            assert encoder.spatial(x).shape == (3, 49, 1024)
        assert FindingNet(4).eval().to("meta")(x[None, :2]).shape == (1, 4)
