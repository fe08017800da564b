"""Train the `phantom` weights: DenseNet-121 on simulated studies only, to predict the findings and to place them.

    python tools/train_encoder.py render POOL    # simulate the bodies once (a process a core)
    torchrun --nproc_per_node 3 tools/train_encoder.py train POOL    # progressive resizing, a process a core, bfloat16
    python tools/train_encoder.py test           # AUROC of each finding on the simulated chen test split

What the training of the shipped weights printed is in train_encoder.log. Where there is a POOL/start.safetensors
(weights of an earlier training), it goes on from those, at the largest size; otherwise it starts from nothing. Every
body of the pool is drawn anew: its codes are those of a train study (rare ones more often), its seed is not a study's.

The network learns more than it is asked later. Beside each finding it learns the headings and qualifiers of its codes
(a density or an opacity; which side, which lobe), and it learns them twice: from the pooled features of both views, and
from the features of each place, because the phantom knows which places the finding covers. Only the findings' own
outputs are kept.
"""
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from xraycap.encoder import FindingNet, load_finding_net, save_encoder
from xraycap.mesh import FINDINGS, finding_codes, mesh_findings
from xraycap.phantom import phantom
from xraycap.studies import load_studies

STUDIES = 14_000  # of the pool
STAGES = [(128, 420, 16, 2e-3), (224, 1100, 8, 1e-3)]  # pixels a side, batches, a process's batch size, highest lr
PLACES = [  # drawn where a code says nothing
    {"right", "left"},
    {"apex", "upper lobe", "middle lobe", "lingula", "lower lobe", "base", "hilum", "retrocardiac"}]


def parts(mesh):
    "`(finding, heading or qualifier)` pairs of a report's codes, and `(finding, '')`"
    out = set()
    for name, q in finding_codes(mesh):
        if "bilateral" in q: q = q | {"right", "left"}
        out |= {(name, ""), *((name, x) for x in q)}
    return out


def labels(studies, least=10):
    "The findings, then the pairs that at least `least` studies have"
    count = Counter(p for mesh in studies.mesh for p in parts(mesh))
    return [(f, "") for f in FINDINGS] + sorted(p for p, n in count.items() if n >= least and p[1])


def targets(mesh, labels):
    "1, 0 or nan (the code does not say, so the phantom drew it) for each label"
    have = parts(mesh)
    said = lambda f, group: any((f, x) in have for x in group)
    drawn = lambda f, x: (f, "") in have and any(x in group and not said(f, group) for group in PLACES)
    return np.array([1. if (f, x) in have else np.nan if drawn(f, x) else 0. for f, x in labels], "f4")


def draw(studies, labels, n, seed):
    "Rows of `studies` for a pool: a quarter as they come, the rest by a label drawn evenly"
    rng = np.random.default_rng(seed)
    found = [parts(m) for m in studies.mesh]
    having = [[i for i, x in enumerate(found) if p in x] for p in labels]
    having = [x for x in having if x]
    def one():
        if rng.random() < .25: return rng.integers(len(studies))
        return rng.choice(having[rng.integers(len(having))])
    return [one() for _ in range(n)]


def render_one(job):
    "Both views, and for each finding the 28 x 28 blocks that its mask touches, as bits"
    uid, mesh = job
    p = phantom(uid, mesh)
    blocks = np.zeros((len(FINDINGS), 2, 28, 28), bool)
    for f, masks in p.masks.items(): blocks[FINDINGS.index(f)] = np.stack(masks).reshape(2, 28, 8, 28, 8).any((2, 4))
    return np.stack([p.frontal, p.lateral]), np.packbits(blocks, axis=-1)


def render(pool):
    pool.mkdir(parents=True, exist_ok=True)
    studies = load_studies("phantom")
    train, val = (studies[studies.split == part].reset_index(drop=True) for part in ("train", "val"))
    names = labels(train)
    (pool / "labels.json").write_text(json.dumps(names))
    with ProcessPoolExecutor() as ex:
        save(pool / "val", list(zip(val.uid, val.mesh)), names, ex)
        drawn = [(10**7 + i, train.mesh[r]) for i, r in enumerate(draw(train, names, STUDIES, 0))]
        save(pool / "train", drawn, names, ex)


def save(path, jobs, names, ex):
    x = np.lib.format.open_memmap(path.with_suffix(".tmp"), "w+", "u1", (len(jobs), 2, 224, 224))
    blocks = np.zeros((len(jobs), len(FINDINGS), 2, 28, 4), "u1")
    for i, out in enumerate(ex.map(render_one, jobs, chunksize=16)): x[i], blocks[i] = out
    np.save(path.parent / f"{path.name}_blocks.npy", blocks)
    np.save(path.parent / f"{path.name}_y.npy", np.stack([targets(mesh, names) for _, mesh in jobs]))
    os.replace(path.with_suffix(".tmp"), path.with_suffix(".npy"))
    print(path, x.shape, flush=True)


class Pool(torch.utils.data.Dataset):
    """Simulated studies as uint8 (2,size,size), with small shifts and changes of exposure; their labels; the labels at
    each place (2*places, n)"""
    def __init__(self, path, size, augment):
        self.x = np.load(path.with_suffix(".npy"), mmap_mode="r")
        self.y, self.blocks = (np.load(path.parent / f"{path.name}_{k}.npy") for k in ("y", "blocks"))
        names = json.loads((path.parent / "labels.json").read_text())
        self.finding = [FINDINGS.index(f) for f, _ in names]
        self.size, self.augment = size, augment

    def __len__(self): return len(self.x)

    def __getitem__(self, i):
        x = torch.from_numpy(np.array(self.x[i])).float()[None]
        blocks = torch.from_numpy(np.unpackbits(self.blocks[i], axis=-1)[..., :28]).float()  # f 2 28 28
        if self.augment:
            dx, dy = np.random.randint(-11, 12, 2)
            roll = lambda t, k, by: torch.roll(F.pad(t, (k, k, k, k), mode="replicate"), by, (2, 3))[..., k:-k, k:-k]
            x, blocks = roll(x, 11, (int(dy), int(dx))), roll(blocks, 2, (round(dy / 8), round(dx / 8)))
            x = 255 * (x / 255).clamp(0, 1) ** float(np.exp(np.random.normal(0, .2)))
            x = (x - 128) * float(np.exp(np.random.normal(0, .12))) + 128 + float(np.random.normal(0, 10))
        if self.size != 224: x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        places = F.adaptive_max_pool2d(blocks, self.size // 32)[self.finding].flatten(1).T  # (2 g g) n
        y = torch.from_numpy(self.y[i])
        return x[0].clamp(0, 255).to(torch.uint8), (y, places * y)


class PlacedNet(FindingNet):
    "A FindingNet with a second head that reads each place on its own"
    def __init__(self, n):
        super().__init__(n)
        self.at = nn.ModuleList([nn.Linear(1024, n) for _ in range(2)])
        for at in self.at: nn.init.constant_(at.bias, -4)  # most places have none of them

    def forward(self, x):
        "Logits (B,n) of the study and (B,2*places,n) of its places"
        with torch.autocast("cpu", torch.bfloat16):
            a = self.encoder.spatial(x.flatten(0, 1)).unflatten(0, (-1, 2))  # b v p c
            places = torch.cat([at(a[:, v]) for v, at in enumerate(self.at)], 1)
            return self.head(a.mean(2).flatten(1)).float(), places.float()


def bce(logits, y):
    "Binary cross-entropy over the targets that are known"
    known = ~torch.isnan(y)
    return F.binary_cross_entropy_with_logits(logits[known], y[known])


def loss(logits, targets): return bce(logits[0], targets[0]) + 10 * bce(logits[1], targets[1])


def auroc(logits, y, least):
    "`{label: (AUROC, positives)}` of the labels with `least` positives"
    from sklearn.metrics import roc_auc_score
    out = {}
    for i in range(y.shape[1]):
        known = ~np.isnan(y[:, i])
        if y[known, i].sum() >= least: out[i] = roc_auc_score(y[known, i], logits[known, i]), int(y[known, i].sum())
    return out


def check(net, pool, size):
    "One line: the mean AUROC of the findings and of all labels on the simulated chen validation split"
    net.eval()
    dl = torch.utils.data.DataLoader(Pool(pool / "val", size, False), 16)
    with torch.inference_mode(): z, y = (torch.cat(t).numpy() for t in zip(*[(net(x)[0], y) for x, (y, _) in dl]))
    scores = auroc(z, y, 5)
    own = {FINDINGS[i]: float(a) for i, (a, _) in scores.items() if i < len(FINDINGS)}
    mean = np.mean([a for a, _ in scores.values()])
    print(f"{size} px: val AUROC of {len(scores)} labels with 5 or more positives {mean:.3f}, of the findings",
          round(np.mean(list(own.values())), 3), {name: round(a, 2) for name, a in own.items()}, flush=True)


def log_callback(rank, start):
    from fastai.callback.core import Callback
    class Log(Callback):
        "A line each 25 batches"
        def after_batch(self):
            if self.training and rank == 0 and self.train_iter % 25 == 0:
                minutes, loss = (time.time() - start) / 60, self.learn.smooth_loss.item()
                print(f"{minutes:5.1f} min  {self.train_iter}/{self.n_iter}  loss {loss:.4f}", flush=True)
    return Log()


def stage(net, pool, size, batches, bs, lr, start):
    "One size of the progressive resizing: one cycle"
    from fastai.callback import schedule  # noqa: F401 (gives Learner its fit_one_cycle)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    rank, data = int(os.environ.get("RANK", 0)), Pool(pool / "train", size, True)
    def loader(n):
        seeded = torch.Generator().manual_seed(1000 * size + rank)
        sampler = torch.utils.data.RandomSampler(data, num_samples=n * bs, generator=seeded)
        return torch.utils.data.DataLoader(data, bs, sampler=sampler)
    dls = DataLoaders(loader(batches), loader(1))
    learn = Learner(dls, net, loss, wd=.05, path=pool, cbs=[log_callback(rank, start)])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, lr, pct_start=.15)


def train(pool):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bare, start = PlacedNet(len(json.loads((pool / "labels.json").read_text()))), time.time()
    earlier = (pool / "start.safetensors").exists()
    if earlier: bare.encoder.load_state_dict(load_finding_net(pool / "start.safetensors")[0].encoder.state_dict())
    net = bare.to(memory_format=torch.channels_last)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        torch.distributed.init_process_group("gloo")
        net = nn.parallel.DistributedDataParallel(bare)
    rank = int(os.environ.get("RANK", 0))
    for size, batches, bs, lr in STAGES[-1:] if earlier else STAGES:
        done = pool / f"stage{size}.pt"
        if done.exists(): bare.load_state_dict(torch.load(done, weights_only=True)); continue
        stage(net, pool, size, batches, bs, lr, start)
        if rank == 0:
            torch.save(bare.state_dict(), done)
            check(bare, pool, size)
        if net is not bare: torch.distributed.barrier()
    if rank == 0: save_encoder(findings_only(bare), pool / "phantom_encoder.safetensors", FINDINGS)


def findings_only(net):
    "The network with the outputs of `FINDINGS` only"
    out = FindingNet(len(FINDINGS))
    out.encoder.load_state_dict(net.encoder.state_dict())
    out.head.weight.data, out.head.bias.data = net.head.weight.data[:len(FINDINGS)], net.head.bias.data[:len(FINDINGS)]
    return out


def test():
    "AUROC of the shipped weights on the simulated chen test split, from the stored features"
    from xraycap.batches import pool_views
    from xraycap.encoder import ImageEncoder
    from xraycap.fast import fused
    from xraycap.features import store_features
    studies = load_studies("phantom")
    studies = studies[studies.split == "test"]
    store, (net, findings) = store_features(studies, fused(ImageEncoder("phantom"))), load_finding_net()
    pooled = torch.from_numpy(np.stack([pool_views(store[uid]) for uid in studies.uid]))
    with torch.inference_mode(): z = net.head(pooled).numpy()
    scores = auroc(z, np.array([[f in mesh_findings(m) for f in findings] for m in studies.mesh], "f4"), 1)
    for i, (a, n) in sorted(scores.items(), key=lambda s: -s[1][1]):
        print(f"{findings[i]:28} {n:4d} positives  AUROC {a:.3f}")
    often = np.mean([a for a, n in scores.values() if n >= 20])
    print(f"mean over the findings with 20 or more positives: {often:.3f}")


if __name__ == "__main__": {"render": render, "train": train, "test": test}[sys.argv[1]](*map(Path, sys.argv[2:]))
