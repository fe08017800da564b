"""Train the `chest` weights: DenseNet-121 on simulated studies and on labelled real radiographs together.

    python tools/train_encoder.py render POOL    # simulate the bodies once (a process a core)
    python tools/train_encoder.py train POOL --start EARLIER --radiographs NIH.csv --children CHILDREN.csv
    python tools/train_encoder.py test [WEIGHTS] [--radiographs NIH.csv]    # AUROC of each finding

Both tables have the columns `frontal,labels` and are read as `load_studies` reads them; the radiographs' part test is
left alone. Interrupted, `train` goes on from its last hundredth batch, with the batches that it would have had. It
writes POOL/chest_encoder.safetensors.

EARLIER are weights of `save_encoder` that have learnt from simulated studies only; train_encoder.log is what their
training printed, and then the three runs below.

Each image teaches the outputs that it knows. A simulated study knows all of them, and their places: beside each
finding the headings and qualifiers of its codes are learnt (a density or an opacity; which side, which lobe), from the
pooled features of both views, and from the features of each place, because the phantom knows which places a finding
covers. A radiograph knows the findings that its table's labels can name; what they don't name is not there. A child
with a finding says nothing of the others. Only the findings' own outputs are kept.
"""
import argparse
import copy
import json
import math
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from xraycap.encoder import FindingNet, load_finding_net, save_encoder
from xraycap.labels import NIH
from xraycap.mesh import FINDINGS, finding_codes, mesh_findings
from xraycap.phantom import phantom, study_views
from xraycap.radiographs import open_radiograph, square
from xraycap.studies import load_studies

@dataclass
class Run:
    "A training of one cycle"
    name: str
    start: str = ""  # the run whose weights it goes on from; '': those of --start
    parts: tuple = ("train", "val")  # of the table of radiographs
    simulated: int = 2  # studies of two views in a batch
    radiographs: int = 16  # of the table
    children: int = 2  # radiographs of children
    steps: int = 520  # batches
    rate: float = 2e-4  # highest learning rate
    strength: float = .5  # of the changes of a picture
    mixup: float = .2  # of mixing two radiographs (beta distribution)
    seed: int = 0


RUNS = [Run("real", parts=("train",), simulated=0, children=0, steps=900),
        Run("both1", "real", seed=1),
        Run("both2", "real", seed=2, strength=.7, mixup=.3)]
MEAN = ["both1", "both2"]  # the mean of their weights is what ships
WORTH = {"simulated": 1., "radiographs": 3., "children": .5}  # weight of each kind in the loss
STUDIES = 2_000  # of the pool
SIDE = 256  # pixels a side at which radiographs are kept
PLACES = 10.  # weight of the loss at each place beside that of the study
DECAY, AVERAGE = .05, .99  # AdamW's weight decay; what the average of the weights keeps at each batch
SEVEN = {"Cardiomegaly", "Pleural Effusion", "Edema", "Atelectasis", "Airspace Disease", "Pneumothorax", "Nodule"}
DRAWN = [  # by the phantom, where a code says nothing
    {"right", "left"},
    {"apex", "upper lobe", "middle lobe", "lingula", "lower lobe", "base", "hilum", "retrocardiac"}]


# --- what is to be learnt

def parts(mesh):
    "`(finding, heading or qualifier)` pairs of a report's codes, and `(finding, '')`"
    out = set()
    for name, q in finding_codes(mesh):
        if "bilateral" in q: q = q | {"right", "left"}
        out |= {(name, ""), *((name, x) for x in q)}
    return out


def labels(studies, least=10):
    "The findings, then the pairs that at least `least` studies have, or that a label of the NIH names"
    count = Counter(p for mesh in studies.mesh for p in parts(mesh))
    often = {p for p, n in count.items() if n >= least} | parts(NIH.values())
    return [(f, "") for f in FINDINGS] + sorted(p for p in often if p[1])


def targets(mesh, labels):
    "1, 0 or nan (the code does not say, so the phantom drew it) for each label"
    have = parts(mesh)
    said = lambda f, group: any((f, x) in have for x in group)
    drawn = lambda f, x: (f, "") in have and any(x in group and not said(f, group) for group in DRAWN)
    return np.array([1. if (f, x) in have else np.nan if drawn(f, x) else 0. for f, x in labels], "f4")


def radiograph_targets(mesh, labels, known, whole):
    "1, 0 or nan for each label, of which the table can name `known`; `whole`: what is not named is not there"
    have = parts(mesh)
    absent = 0. if whole or not have else np.nan
    return np.array([1. if p in have else absent if p in known else np.nan for p in labels], "f4")


# --- the pool of simulated studies

def draw(studies, labels, n, seed):
    "Rows of `studies`: a quarter as they come, a third by one of `SEVEN`, the rest by a label drawn evenly"
    rng = np.random.default_rng(seed)
    found = [parts(m) for m in studies.mesh]
    having = lambda some: [x for x in ([i for i, have in enumerate(found) if p in have] for p in some) if x]
    seven, each = having([(f, "") for f in FINDINGS if f in SEVEN]), having(labels)
    def one():
        u = rng.random()
        if u < .25: return rng.integers(len(studies))
        groups = seven if u < .58 else each
        return rng.choice(groups[rng.integers(len(groups))])
    return [one() for _ in range(n)]


def render_one(job):
    "Both views, and for each finding the 28 x 28 blocks that its mask touches, as bits"
    uid, mesh = job
    p = phantom(uid, mesh)
    blocks = np.zeros((len(FINDINGS), 2, 28, 28), bool)
    for f, masks in p.masks.items(): blocks[FINDINGS.index(f)] = np.stack(masks).reshape(2, 28, 8, 28, 8).any((2, 4))
    return np.stack([p.frontal, p.lateral]), np.packbits(blocks, axis=-1)


def render(pool, n):
    pool.mkdir(parents=True, exist_ok=True)
    studies = load_studies("phantom")
    train, val = (studies[studies.split == part].reset_index(drop=True) for part in ("train", "val"))
    names = labels(train)
    (pool / "labels.json").write_text(json.dumps(names))
    drawn = [(10**7 + i, train.mesh[r]) for i, r in enumerate(draw(train, names, n, 0))]
    with ProcessPoolExecutor() as ex:
        for part, jobs in {"val": list(zip(val.uid, val.mesh))[:n], "train": drawn}.items():
            save(pool / part, jobs, names, ex)


def save(path, jobs, names, ex):
    if path.with_suffix(".npy").exists(): return
    x = np.lib.format.open_memmap(path.with_suffix(".tmp"), "w+", "u1", (len(jobs), 2, 224, 224))
    blocks = np.zeros((len(jobs), len(FINDINGS), 2, 28, 4), "u1")
    for i, out in enumerate(ex.map(render_one, jobs, chunksize=16)): x[i], blocks[i] = out
    np.save(path.parent / f"{path.name}_blocks.npy", blocks)
    np.save(path.parent / f"{path.name}_y.npy", np.stack([targets(mesh, names) for _, mesh in jobs]))
    os.replace(path.with_suffix(".tmp"), path.with_suffix(".npy"))
    print(path, x.shape, flush=True)


class Phantoms:
    "Simulated studies of a pool: both views, labels, and the blocks that each finding covers"
    def __init__(self, path):
        self.x = np.load(path.with_suffix(".npy"), mmap_mode="r")
        self.y, self.blocks = (np.load(path.parent / f"{path.name}_{k}.npy") for k in ("y", "blocks"))
        self.y = torch.from_numpy(self.y)

    def __getitem__(self, i):
        "Views (n,2,224,224) and masks (n,f,2,28,28) of some"
        masks = np.unpackbits(self.blocks[i], axis=-1)[..., :28]
        return torch.from_numpy(self.x[i]).float(), torch.from_numpy(masks).float()


class Radiographs:
    "Frontal radiographs of a table and their labels, held in memory"
    def __init__(self, table, names, known, whole=True):
        with ThreadPoolExecutor() as ex:
            views = list(ex.map(lambda path: square(open_radiograph(path), SIDE), table.frontal))
        self.x = torch.from_numpy(np.stack(views))  # n h w
        self.y = torch.from_numpy(np.stack([radiograph_targets(m, names, known, whole) for m in table.mesh]))


# --- changes of the pictures

def moved(x, rng, strength=1., masks=None):
    "Each picture (n,c,h,w) zoomed, turned, stretched and shifted, at 224 pixels; its masks (n,f,28,28) with it"
    n = len(x)
    normal = lambda sd: torch.from_numpy(rng.normal(0, sd * strength, n).astype("f4"))
    zoom, aspect, angle, shear = (normal(.09) - .02).exp(), normal(.05).exp(), normal(.07), normal(.03)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack([torch.stack([cos / zoom * aspect, (shear - sin) / zoom, normal(.07)], 1),
                         torch.stack([(shear + sin) / zoom, cos / zoom / aspect, normal(.07)], 1)], 1)  # n 2 3
    edge = "border" if rng.random() < .5 else "zeros"
    def move(t, size):
        grid = F.affine_grid(theta, (n, t.shape[1], size, size), align_corners=False)
        return F.grid_sample(t, grid, align_corners=False, padding_mode=edge)
    return move(x, 224), None if masks is None else (move(masks, 28) > .3).float()


def with_grey_levels(x, like):
    "`x` (h,w), 0 to 255, with the distribution of the grey levels of `like`"
    a, b = (torch.histc(t, 256, 0, 256).cumsum(0) / t.numel() for t in (x, like))
    table = torch.searchsorted(b.contiguous(), a.contiguous()).clamp(max=255).float()
    low = x.clamp(0, 255).floor()
    above = table[(low + 1).clamp(max=255).long()]
    return table[low.long()] + (x - low) * (above - table[low.long()])


def with_amplitudes(x, like, share, width):
    "`x` (h,w) with the amplitudes of its low frequencies moved towards those of `like` (Yang and Soatto 2020)"
    f, g = torch.fft.fft2(x), torch.fft.fft2(like)
    a, b = f.abs(), g.abs()
    for rows in (slice(0, width), slice(1 - width, None)):
        for cols in (slice(0, width), slice(1 - width, None)): a[rows, cols].lerp_(b[rows, cols], share)
    return torch.fft.ifft2(torch.polar(a, f.angle())).real


def as_film(x, films, rng):
    "A simulated picture (h,w) in the manner of a real film: its grey levels, or the amplitudes of its low frequencies"
    like = films[rng.integers(len(films))][16:240, 16:240].float()
    u = rng.random()
    if u < .45: x = x.lerp(with_grey_levels(x, like), rng.uniform(.5, 1))
    if .3 < u < .7: x = with_amplitudes(x, like, rng.uniform(.2, .8), int(rng.integers(2, 5)))
    return x


def exposed(x, rng, strength):
    "A picture (h,w), 0 to 255, as another machine might have taken it: tone, blur, noise, now and then a part hidden"
    x = (x / 255).clamp(0, 1) ** math.exp(rng.normal(0, .3 * strength))
    if rng.random() < .3:  # a curve with a toe and a shoulder
        k, m = rng.uniform(2, 6), rng.uniform(.35, .65)
        low, high = 1 / (1 + math.exp(k * m)), 1 / (1 + math.exp(-k * (1 - m)))
        x = (torch.sigmoid(k * (x - m)) - low) / (high - low)
    x = 255 * ((x - .5) * math.exp(rng.normal(0, .15 * strength)) + .5 + rng.normal(0, .05 * strength))
    if rng.random() < .4 * strength:
        size = int(rng.choice([64, 64, 96, 128, 160]))
        small = F.interpolate(x[None, None], (size, size), mode="bilinear", antialias=True)
        x = F.interpolate(small, (224, 224), mode="bilinear")[0, 0]
    if rng.random() < .3: x = x + torch.from_numpy(rng.normal(0, rng.uniform(1, 9), x.shape).astype("f4"))
    if rng.random() < .3 * strength:
        height, width = rng.integers(20, 80, 2)
        top, left = rng.integers(0, 224 - height), rng.integers(0, 224 - width)
        x[top:top + height, left:left + width] = rng.uniform(0, 255)
    return x


def as_bytes(x): return x.clamp(0, 255).to(torch.uint8)


class Mixer:
    "Batches of a run; which images are in them, and how they are changed, depends on the batch's number only"
    def __init__(self, phantoms, radiographs, children, run):
        self.phantoms, self.radiographs, self.children, self.run = phantoms, radiographs, children, run
        self.films = torch.cat([radiographs.x, children.x[::8]])

    def simulated(self, n, rng):
        "uint8 (n,2,224,224), labels, and the findings' masks (n,2,f,7,7)"
        i = np.sort(rng.integers(0, len(self.phantoms.x), n))
        x, masks = self.phantoms[i]
        seen, places = [], []
        for v in range(2):
            a, m = moved(x[:, v:v + 1], rng, masks=masks[:, :, v])
            a = [as_film(o, self.films, rng) if rng.random() < .75 else o for o in a[:, 0]]
            seen.append(as_bytes(torch.stack([exposed(o, rng, self.run.strength) for o in a])))
            places.append(F.adaptive_max_pool2d(m, 7))
        return torch.stack(seen, 1), self.phantoms.y[i], torch.stack(places, 1)

    def real(self, data, i, rng, mixup=0.):
        "uint8 (n,1,224,224), labels, and no masks"
        x, y = moved(data.x[i, None].float(), rng, self.run.strength)[0][:, 0], data.y[i]
        x = torch.stack([exposed(o, rng, self.run.strength) for o in x])
        if mixup:
            share = torch.from_numpy(rng.beta(mixup, mixup, len(x)).astype("f4"))
            share = torch.maximum(share, 1 - share)
            x, y = x.flip(0).lerp(x, share[:, None, None]), y.flip(0).lerp(y, share[:, None])
        return as_bytes(x)[:, None], y, None

    def turn(self, n, step):
        "Whose turn it is: each radiograph once before any comes again"
        size = len(self.radiographs.x)
        order = {i // size: np.random.default_rng([self.run.seed, i // size]).permutation(size)
                 for i in (step * n, step * n + n - 1)}
        return [order[i // size][i % size] for i in range(step * n, step * n + n)]

    def batch(self, step):
        "{kind: (images, labels, masks or None)}"
        rng, run, out = np.random.default_rng([self.run.seed, 1, step]), self.run, {}
        if run.simulated: out["simulated"] = self.simulated(run.simulated, rng)
        if run.children:
            out["children"] = self.real(self.children, rng.integers(0, len(self.children.x), run.children), rng)
        return out | {"radiographs": self.real(self.radiographs, self.turn(run.radiographs, step), rng, run.mixup)}


# --- the network

class PlacedNet(FindingNet):
    "A FindingNet with a second head that reads each place on its own; a study of one view has it twice"
    def __init__(self, n):
        super().__init__(n)
        self.at = nn.ModuleList([nn.Linear(1024, n) for _ in range(2)])
        for at in self.at: nn.init.constant_(at.bias, -4)  # most places have none of them

    def forward(self, images):
        "List of uint8 (n,v,H,W) -> for each the logits (n,labels) of the study and (n,v*places,labels) of its places"
        sizes = [len(x) * x.shape[1] for x in images]
        with torch.autocast("cpu", torch.bfloat16):
            a, out = self.encoder.spatial(torch.cat([x.flatten(0, 1) for x in images])), []
        for x, seen in zip(images, a.split(sizes)):
            seen = seen.float().unflatten(0, x.shape[:2])  # n v p c
            pooled = seen.mean(2).expand(-1, 2, -1).flatten(1)  # n (v c)
            out.append((self.head(pooled), torch.cat([at(o) for at, o in zip(self.at, seen.unbind(1))], 1)))
        return out


def started(names, weights):
    "A PlacedNet that goes on from the findings' outputs of an earlier file"
    net, (earlier, findings) = PlacedNet(len(names)), load_finding_net(weights)
    net.encoder.load_state_dict(earlier.encoder.state_dict())
    rows, head = [findings.index(f) for f in FINDINGS], net.head
    head.weight.data[:len(rows)], head.bias.data[:len(rows)] = earlier.head.weight[rows], earlier.head.bias[rows]
    head.bias.data[len(rows):] = -4
    return net.to(memory_format=torch.channels_last)


@torch.no_grad()
def recalibrate(net, mixer, batches):
    "Batch norm's statistics from batches of all kinds"
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    net.train()
    for k in range(batches): net([images for images, _, _ in mixer.batch(k).values()])
    net.eval()


# --- learning

def bce(logits, y):
    "Binary cross-entropy over the targets that are known"
    known = ~torch.isnan(y)
    return F.binary_cross_entropy_with_logits(logits[known], y[known])


def loss(net, batch, finding):
    "Of the labels of studies, and at each place where they are known; `finding`: number of each label's finding"
    total = 0.
    for (kind, (_, y, masks)), (z, at) in zip(batch.items(), net([images for images, _, _ in batch.values()])):
        one = bce(z, y)
        if masks is not None:  # n v f 7 7 -> n (v p) labels
            one = one + PLACES * bce(at, masks[:, :, finding].flatten(3).transpose(2, 3).flatten(1, 2) * y[:, None])
        total = total + WORTH[kind] * one
    return total


def averaged(a, b, share):
    "Move the state of `a`, a share of the way, towards that of `b`"
    for old, new in zip(a.state_dict().values(), b.state_dict().values()):
        if old.is_floating_point(): old.lerp_(new, share)


def fit(net, mixer, finding, steps, rate, kept):
    "One cycle; returns the average of the weights. Goes on from the file `kept`, which is written each 100 batches"
    weights, others = ([p for p in net.parameters() if (p.ndim > 1) == many] for many in (True, False))
    opt = torch.optim.AdamW([{"params": weights, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.}],
                            rate, betas=(.9, .99))
    average, first, shown, start = copy.deepcopy(net), 0, [], time.time()
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        net.load_state_dict(state["net"]), average.load_state_dict(state["average"]), opt.load_state_dict(state["opt"])
        first = state["step"]
    net.train()
    for step in range(first, steps):
        t = step / steps
        for group in opt.param_groups:
            group["lr"] = rate * (t / .1 if t < .1 else .5 * (1 + math.cos(math.pi * (t - .1) / .9)) + .01)
        opt.zero_grad()
        one = loss(net, mixer.batch(step), finding)
        one.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.)
        opt.step()
        with torch.no_grad(): averaged(average, net, 1 - min(AVERAGE, (step + 1) / (step + 10)))
        shown.append(one.item())
        if (step + 1) % 25 == 0:
            minutes = (time.time() - start) / 60
            print(f"{kept.stem} {minutes:6.1f} min  {step + 1}/{steps}  loss {np.mean(shown[-25:]):.4f}", flush=True)
        if (step + 1) % 100 == 0:
            state = {"net": net.state_dict(), "average": average.state_dict(), "opt": opt.state_dict()}
            torch.save(state | {"step": step + 1}, kept.with_suffix(".part"))
            os.replace(kept.with_suffix(".part"), kept)
    return average


def findings_only(net):
    "The network with the outputs of `FINDINGS` only"
    out = FindingNet(len(FINDINGS))
    out.encoder.load_state_dict(net.encoder.state_dict())
    out.head.weight.data, out.head.bias.data = net.head.weight.data[:len(FINDINGS)], net.head.bias.data[:len(FINDINGS)]
    return out.eval()


def load_radiographs(path):
    "A table, and the findings and headings that its labels can name"
    table = load_studies(path)
    return table, parts(table.attrs["labels"])


def train(pool, start, radiographs, children, scale):
    names = [tuple(name) for name in json.loads((pool / "labels.json").read_text())]
    finding, phantoms = [FINDINGS.index(f) for f, _ in names], Phantoms(pool / "train")
    table, known = load_radiographs(radiographs)
    young = Radiographs(load_studies(children), names, known, whole=False)
    for run in RUNS:
        torch.manual_seed(run.seed)
        done, net = pool / f"{run.name}.pt", started(names, start)
        mixer = Mixer(phantoms, Radiographs(table[table.split.isin(run.parts)], names, known), young, run)
        if done.exists(): continue
        if run.start: net.load_state_dict(torch.load(pool / f"{run.start}.pt", weights_only=True))
        net = fit(net, mixer, finding, max(1, round(scale * run.steps)), run.rate, pool / f"{run.name}.state")
        torch.save(net.state_dict(), done)
    states = [torch.load(pool / f"{name}.pt", weights_only=True) for name in MEAN]
    net.load_state_dict({k: sum(s[k].double() for s in states).div(len(states)).to(v.dtype)
                         for k, v in states[0].items()})
    recalibrate(net, mixer, max(1, round(scale * 24)))
    out = findings_only(net)
    save_encoder(out, pool / "chest_encoder.safetensors", FINDINGS)
    val = Phantoms(pool / "val")
    tell(scores(out, val.x, val.y[:, :len(FINDINGS)].numpy() == 1), "simulated studies, part val", 5)


# --- measuring

@torch.inference_mode()
def scores(net, views, y):
    "{finding: (AUROC, positives)} of uint8 (n,2,224,224) and truth values (n,findings)"
    from sklearn.metrics import roc_auc_score
    z = torch.cat([net(torch.from_numpy(np.stack(views[i:i + 16]))) for i in range(0, len(views), 16)]).numpy()
    return {f: (float(roc_auc_score(y[:, i], z[:, i])), int(y[:, i].sum()))
            for i, f in enumerate(FINDINGS) if 0 < y[:, i].sum() < len(y)}


def tell(found, of, least):
    "A line for each finding, and the means"
    for f, (a, n) in sorted(found.items(), key=lambda o: -o[1][1]): print(f"{f:28} {n:4d} positives  AUROC {a:.3f}")
    for some, name in ((FINDINGS, "all"), (SEVEN, "the seven")):
        often = [a for f, (a, n) in found.items() if n >= least and f in some]
        mean = sum(often) / max(1, len(often))
        print(f"{of}: mean over the {len(often)} of {name} that {least} or more have {mean:.3f}")


def test_radiographs(net, path):
    "AUROC on the part test of a table, for the findings that its labels can name"
    table, known = load_radiographs(path)
    table = table[table.split == "test"]
    y = np.array([[(f, "") in known and f in mesh_findings(mesh) for f in FINDINGS] for mesh in table.mesh])
    tell(scores(net, [study_views(study) for study in table.itertuples()], y), f"{path}, part test", 8)


def test(weights, radiographs):
    net, findings = load_finding_net(weights)
    studies = load_studies("phantom")
    studies = studies[studies.split == "test"]
    y = np.array([[f in mesh_findings(mesh) for f in findings] for mesh in studies.mesh])
    tell(scores(net, [study_views(study) for study in studies.itertuples()], y), "simulated studies, part test", 20)
    if radiographs: test_radiographs(net, radiographs)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["render", "train", "test"])
    ap.add_argument("path", nargs="?", type=Path, help="the pool, or the weights to test (those of the package)")
    ap.add_argument("--studies", type=int, default=STUDIES, help="simulated studies of the pool")
    ap.add_argument("--start", type=Path, help="weights to go on from (those of the package)")
    ap.add_argument("--radiographs", type=Path, help="table of labelled radiographs")
    ap.add_argument("--children", type=Path, help="table of labelled radiographs of children")
    ap.add_argument("--scale", type=float, default=1., help="of the number of batches")
    a = ap.parse_args()
    if a.what == "render": render(a.path, a.studies)
    elif a.what == "train": train(a.path, a.start, a.radiographs, a.children, a.scale)
    else: test(a.path, a.radiographs)
