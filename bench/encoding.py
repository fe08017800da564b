"Encoding: the network against a matrix product, and from PNG files to features against torchxrayvision's plain loop."
import shutil
import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchxrayvision as xrv
from PIL import Image

from bench.common import rates, rounds, row
from bench.limit import product
from xraycap.encoder import ImageEncoder
from xraycap.fast import fused
from xraycap.features import store_features
from xraycap.phantom import phantom

STUDIES, GFLOP = 16, 5.05  # what `fused` does for an image of 224 x 224; DenseNet-121 as it is written does 5.67


def peer():
    "torchxrayvision's DenseNet-121 with random weights, whose batch norms have seen noise."
    torch.manual_seed(0)
    model = xrv.models.DenseNet(num_classes=18, in_channels=1)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.momentum = None
    with torch.no_grad(): model.train().features(1024 * torch.randn(8, 1, 224, 224).clamp(-1, 1))
    return model.eval()


def draw(folder):
    "Simulated studies as PNG files of 512 x 624, the size of the collection's; the table of them."
    rows = []
    for uid in range(1, STUDIES + 1):
        paths = [folder / f"{uid}-{view}.png" for view in ("frontal", "lateral")]
        for path, view in zip(paths, phantom(uid, size=624)[:2]): Image.fromarray(view[:, 56:568]).save(path)
        rows.append(dict(uid=uid, frontal=str(paths[0]), lateral=str(paths[1]), mesh=[]))
    return pd.DataFrame(rows)


def plain_loop(model, studies, out):
    "What torchxrayvision's documentation shows, an image at a time; its last feature map is kept as float16."
    crop, resize = xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(224)
    features = []
    with torch.no_grad():
        for path in [*studies.frontal, *studies.lateral]:
            x = torch.from_numpy(resize(crop(xrv.utils.load_image(path))))
            features.append(model.features(x[None]).relu()[0].half().numpy())
    np.save(out, np.stack(features))


def measure(_):
    folder, number = Path(tempfile.mkdtemp()), count()
    try:
        model, studies = peer(), draw(folder)
        torch.save(model.state_dict(), folder / "weights.pt")
        encoder = ImageEncoder(folder / "weights.pt")
        fast, n = fused(encoder), 2 * STUDIES
        x = torch.from_numpy(np.stack([v for uid in range(1, 5) for v in phantom(uid)[:2]])).repeat(n // 8, 1, 1)
        multiply, gflop = product()
        with torch.inference_mode():
            theirs = model.features(encoder.prepare(x[:8])).relu()
            difference = (fast(x[:8]) - theirs).abs().max() / theirs.abs().max()

            def one_by_one():
                for image in encoder.prepare(x): model.features(image[None]).relu()

            seconds = rounds({"product": lambda: [multiply() for _ in range(10)],
                              "fused": lambda: fast(x), "xrv": one_by_one,
                              "files": lambda: store_features(studies, fast, folder / str(next(number))),
                              "loop": lambda: plain_loop(model, studies, folder / "features.npy")}, 5)
    finally: shutil.rmtree(folder)
    speed, rate = rates(seconds["fused"], n * GFLOP), {name: rates(seconds[name], n) for name in seconds}
    return [
        row("network", "GFLOP/s", speed, "the same rounds' product", rates(seconds["product"], 10 * gflop), 0.85),
        row("network", "images/s", rate["fused"], "torchxrayvision's network", rate["xrv"]),
        row("PNG files to stored features", "images/s", rate["files"], "torchxrayvision's loop", rate["loop"], 1.3),
        row("difference of features", "of largest", difference.item(), "goal", 1e-3, 1)]
