"""Fit the rule of `xraycap.inputs`, which tells what kind of picture the encoder is given, and measure its mistakes.

    python tools/fit_inputs.py --radiographs TABLE.csv [--children TABLE.csv] [--encoder WEIGHTS] [--most 400]

Writes xraycap/assets/inputs.safetensors, which belongs to these weights and no others, and nbs/inputs.csv, the table of
mistakes that the appendix shows; run it again whenever the encoder changes.

The tables have the columns `frontal` and, if there, `patient` and `split` (train: to fit; val: to set the limits; test:
to measure); without `split`, a fifth of the patients is val and a fifth test. The simulated studies have the chen
split. Half of the pictures of train and val are changed as another machine might have taken them, so that the rule does
not learn one hospital's manner. The photographs are those that come with scikit-learn and, where it is installed,
scikit-image; nothing is fitted on them, nor on any other picture that is no chest radiograph.
"""
import argparse
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images

from xraycap.encoder import ImageEncoder
from xraycap.fast import fused
from xraycap.files import assets
from xraycap.inputs import fit_rule, input_warnings, save_rule, signature
from xraycap.phantom import study_views
from xraycap.radiographs import grey, open_radiograph, square
from xraycap.studies import load_studies


def changed(x, rng):
    "A picture (224, 224) as another machine might have taken it: cut or framed, turned, blurred, of another tone."
    left, top, right, bottom = 224 * rng.uniform(-.08, .12, 4)
    image = Image.fromarray(x).rotate(rng.normal(0, 3), Image.Resampling.BILINEAR)
    image = image.crop((round(left), round(top), round(224 - right), round(224 - bottom)))  # black outside
    side = int(rng.choice([64, 112, 224]))
    y = square(Image.fromarray(square(image, side))) / 255
    y = 255 * y ** np.exp(rng.normal(0, .35))
    y = (y - 128) * np.exp(rng.normal(0, .2)) + 128 + rng.normal(0, 15) + rng.normal(0, rng.uniform(0, 4), y.shape)
    return y.clip(0, 255).astype("uint8")


def parts(path, most, rng):
    "{part of the split: pictures (n, 224, 224)} of a table, at most `most` of each."
    table = pd.read_csv(path)
    if "split" not in table:
        who = table.frontal.map(lambda f: Path(f).stem.split("_")[0].rsplit("-", 1)[0])  # person7_virus_1, IM-0007-0001
        if "patient" in table: who = table.patient
        turn = who.map(lambda o: zlib.crc32(str(o).encode()) % 5)
        table["split"] = np.select([turn == 3, turn == 4], ["val", "test"], "train")
    chosen = table.sample(frac=1, random_state=rng.integers(2**31)).groupby("split").head(most)
    files = {part: rows.frontal for part, rows in chosen.groupby("split")}
    return {part: np.stack([square(open_radiograph(f)) for f in some]) for part, some in files.items()}


def simulated(most, rng):
    "{part: both views (n, 2, 224, 224)} of simulated studies."
    studies = load_studies("phantom", "chen")
    chosen = studies.sample(frac=1, random_state=rng.integers(2**31)).groupby("split").head(most)
    return {part: np.stack([study_views(row) for row in rows.itertuples()]) for part, rows in chosen.groupby("split")}


def drawn(rng, n=8):
    "{what: n pictures} that are no radiographs, made in code."
    def smooth():
        x = gaussian_filter(rng.normal(size=(224, 224)), rng.uniform(2, 12))
        return (255 * (x - x.min()) / np.ptp(x)).astype("uint8")

    def page():
        image = Image.new("L", (600, 700), 255)
        for y in range(30, 680, 23):
            line = " ".join("".join(rng.choice([*"abcdefghijklmnop"], rng.integers(2, 9))) for _ in range(9))
            ImageDraw.Draw(image).text((40, y), line, fill=20, font=ImageFont.load_default(18))
        return square(image)

    def hand():
        image = Image.new("L", (448, 448), 10)
        draw = ImageDraw.Draw(image)
        draw.ellipse((130, 210, 320, 430), fill=90)
        for angle, length in zip(np.deg2rad(-60 + 26 * np.arange(5) + rng.normal(0, 3, 5)), (150, 200, 215, 200, 150)):
            way = np.array([np.sin(angle), -np.cos(angle)])
            draw.line([*(225, 300) + 70 * way, *(225, 300) + length * way], fill=90, width=44)
            draw.line([225, 330, *(225, 300) + length * way], fill=190, width=20)
        return square(image.filter(ImageFilter.GaussianBlur(3)))

    ramp = np.linspace(0, 255, 224)
    slopes = [np.tile(ramp, (224, 1)), np.tile(ramp[:, None], 224), (ramp + ramp[:, None]) / 2]
    return {"text": [page() for _ in range(n)], "simulated hands": [hand() for _ in range(n)],
            "white noise": [*rng.integers(0, 256, (n, 224, 224), "uint8")], "clouds": [smooth() for _ in range(n)],
            "gradients": [x.astype("uint8") for x in slopes]}


def photographs():
    "{where they come from: pictures}"
    found = {"photographs of scikit-learn": [Image.fromarray(x) for x in load_sample_images().images]}
    if importlib.util.find_spec("skimage"):
        folder = Path(importlib.util.find_spec("skimage").origin).parent/"data"
        files = [f for f in sorted(folder.iterdir()) if f.suffix in (".png", ".jpg")]
        found["pictures of scikit-image"] = [Image.open(f) for f in files]
    return {name: [square(grey(image)) for image in images] for name, images in found.items()}


def cases(films, young, studies, others, features):
    "(what is given, words of the right warning or None, features of the first pictures, of the second ones or None)"
    front, side = (features(studies[:, i]) for i in (0, 1))
    lateral, negative, other = "looks like a lateral", "negative", "does not look like a chest"
    yield "real films", None, features(films), None
    redone = [changed(x, np.random.default_rng(i)) for i, x in enumerate(films)]
    yield "real films, changed", None, features(redone), None
    if len(young): yield "children's films", None, features(young), None
    yield "simulated studies", None, front, side
    yield "real films, negative", negative, features(255 - films), None
    yield "simulated frontal views, negative", negative, features(255 - studies[:, 0]), None
    yield "simulated lateral views as frontal", lateral, side, None
    yield "simulated views, swapped", "swapped", side, front
    yield "simulated frontal views as lateral", "lateral view looks like a frontal", front, front
    yield "real films, upside down", other, features(films[:, ::-1]), None
    yield "real films, lying on the side", other, features(np.rot90(films, axes=(1, 2))), None
    for name, pictures in others.items(): yield name, other, features(pictures), None


def main(radiographs, children, encoder, most):
    rng, net = np.random.default_rng(0), fused(ImageEncoder(encoder).eval())

    @torch.inference_mode()
    def features(x):
        pictures = torch.tensor(np.stack(x))
        return signature(np.concatenate([net.pooled(part).numpy() for part in pictures.split(64)]), pictures.numpy())

    films, studies = parts(radiographs, most, rng), simulated(most, rng)
    young = parts(children, most, rng) if children else None

    def half_changed(x): return np.stack([changed(o, rng) if i % 4 > 1 else o for i, o in enumerate(x)])
    def known(part):
        some = {"radiographs": ("frontal", films[part]), "simulated": ("frontal", studies[part][:, 0]),
                "simulated lateral": ("lateral", studies[part][:, 1])}
        if young: some["children"] = ("frontal", young[part])
        some = {name: (kind, half_changed(x)) for name, (kind, x) in some.items()}
        negative = {f"{name}, negative": ("negative", 255 - x[::2]) for name, (_, x) in some.items()}
        return {name: (kind, features(x)) for name, (kind, x) in {**some, **negative}.items()}

    fitted_on = known("train"), known("val")
    rule = fit_rule(*fitted_on)
    blind = fit_rule(*({name: (kind, x[:, :1024]) for name, (kind, x) in part.items()} for part in fitted_on))
    save_rule(rule, assets/"inputs.safetensors", net.digest())
    rows, others = [], {**photographs(), **drawn(rng)}
    young = young["test"] if young else ()
    for what, words, first, second in cases(films["test"], young, studies["test"], others, features):
        def warnings(rule, d):
            seconds = [None] * len(first) if second is None else second[:, :d]
            return [" ".join(input_warnings(*pair, rule)) for pair in zip(first[:, :d], seconds)]
        said, without = warnings(rule, None), warnings(blind, 1024)
        right = {"right sentence": np.mean([words in o for o in said])} if words else {}
        rows.append({"pictures": what, "n": len(said), "to be warned of": "yes" if words else "no",
                     "warned of": np.mean([o != "" for o in said]), **right,
                     "features alone": np.mean([o != "" for o in without])})
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)
    pd.DataFrame(rows).round(3).to_csv(Path(__file__).parents[1]/"nbs"/"inputs.csv", index=False)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--radiographs", type=Path, required=True, help="table of frontal radiographs")
    ap.add_argument("--children", type=Path, help="table of frontal radiographs of children")
    ap.add_argument("--encoder", default="chest", help="weights, as `xraycap train --encoder` takes them")
    ap.add_argument("--most", type=int, default=400, help="pictures of a kind in each part")
    main(**vars(ap.parse_args()))
