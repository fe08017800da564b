"""Train the `phantom` weights: DenseNet-121 from nothing, on simulated studies only, to predict the MeSH finding groups.

    python tools/train_encoder.py render POOL            # simulate the bodies once (two processes)
    torchrun --nproc_per_node 2 tools/train_encoder.py train POOL   # progressive resizing with fastai, a process a core
    python tools/train_encoder.py test                   # AUROC of each finding on the simulated chen test split

What the training of the shipped weights printed is in train_encoder.log; it took 42 minutes on two busy cores after the rendering.
Every body of the pool is drawn anew: its codes are those of a train study (rare findings more often), its seed is not a study's.
"""
import json, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from xraycap.phantom import FINDINGS, finding_sides, mesh_findings, phantom
from xraycap.reports import load_studies

POOLS = {128: 10_000, 224: 2_600} # pixels a side: simulated studies
STAGES = [(64, 600, 16, 3e-3), (96, 270, 16, 2e-3), (128, 110, 12, 1e-3), (224, 100, 8, 6e-4)] # pixels, batches, batch size of a process, highest learning rate
SIDED = [f'{name}/{side}' for name in FINDINGS for side in ('right', 'left')]


def targets(mesh):
    "1, 0 or nan (the code does not say) for each finding, then for each finding on each side"
    found, sides = mesh_findings(mesh), finding_sides(mesh)
    row = [float(f in found) for f in FINDINGS]
    for f in FINDINGS:
        for side in ('right', 'left'): row.append(float(side in sides[f]) if sides.get(f) else np.nan if f in found else 0.)
    return np.array(row, 'f4')


def draw(studies, n, seed):
    "Rows of `studies` for a pool: a quarter as they come, the rest by a finding drawn evenly"
    rng = np.random.default_rng(seed)
    found = [mesh_findings(m) for m in studies.mesh]
    having = {f: [i for i, x in enumerate(found) if f in x] for f in FINDINGS}
    having = [x for x in having.values() if x]
    return [rng.integers(len(studies)) if rng.random() < .25 else rng.choice(having[rng.integers(len(having))]) for _ in range(n)]


def render_one(job):
    uid, mesh, size = job
    p = phantom(uid, mesh, size)
    return np.stack([p.frontal, p.lateral])


def render(pool):
    pool.mkdir(parents=True, exist_ok=True)
    studies = load_studies('phantom')
    train = studies[studies.split == 'train'].reset_index(drop=True)
    with ProcessPoolExecutor(2) as ex:
        for size, n in POOLS.items():
            rows = draw(train, n, size)
            jobs = [(10**7 + size * 10**5 + i, train.mesh[r], size) for i, r in enumerate(rows)]
            save(pool / f'{size}', jobs, ex)
        val = studies[studies.split == 'val']
        save(pool / 'val', [(uid, mesh, 224) for uid, mesh in zip(val.uid, val.mesh)], ex)


def save(path, jobs, ex):
    x = np.lib.format.open_memmap(path.with_suffix('.tmp'), 'w+', 'u1', (len(jobs), 2, jobs[0][2], jobs[0][2]))
    for i, image in enumerate(ex.map(render_one, jobs, chunksize=16)): x[i] = image
    np.save(path.parent / f'{path.name}_y.npy', np.stack([targets(mesh) for _, mesh, _ in jobs]))
    os.replace(path.with_suffix('.tmp'), path.with_suffix('.npy'))
    print(path, x.shape, flush=True)


class Pool(torch.utils.data.Dataset):
    "Simulated studies as uint8 (2,size,size), with small shifts and changes of exposure"
    def __init__(self, path, size, augment):
        self.x = np.load(path.with_suffix('.npy'), mmap_mode='r')
        self.y = np.load(path.parent / f'{path.name}_y.npy')
        self.size, self.augment = size, augment

    def __len__(self): return len(self.x)

    def __getitem__(self, i):
        x = torch.from_numpy(np.array(self.x[i])).float()[None]
        if x.shape[-1] != self.size: x = F.interpolate(x, (self.size, self.size), mode='area' if x.shape[-1] % self.size == 0 else 'bilinear', antialias=x.shape[-1] % self.size != 0)
        if self.augment:
            k = max(self.size // 20, 1)
            dx, dy = np.random.randint(-k, k + 1, 2)
            x = torch.roll(F.pad(x, (k, k, k, k), mode='replicate'), (int(dy), int(dx)), (2, 3))[..., k:-k, k:-k]
            x = 255 * (x / 255).clamp(0, 1) ** float(np.exp(np.random.normal(0, .2)))
            x = (x - 128) * float(np.exp(np.random.normal(0, .12))) + 128 + float(np.random.normal(0, 10))
        return x[0].clamp(0, 255).to(torch.uint8), torch.from_numpy(self.y[i])


def bce(logits, y):
    "Binary cross-entropy over the targets that are known"
    known = ~torch.isnan(y)
    return F.binary_cross_entropy_with_logits(logits[known], y[known])


def auroc(net, path, size=224, bs=16):
    "`{finding: (AUROC, positives)}` on a rendered split"
    from sklearn.metrics import roc_auc_score
    net.eval()
    dl = torch.utils.data.DataLoader(Pool(path, size, False), bs)
    with torch.inference_mode(): z, y = (torch.cat(t).numpy() for t in zip(*[(net(x), y) for x, y in dl]))
    return {f: (float(roc_auc_score(y[:, i], z[:, i])), int(y[:, i].sum())) for i, f in enumerate(FINDINGS) if 0 < y[:, i].sum() < len(y)}


def mean_auroc(scores, least): return float(np.mean([a for a, n in scores.values() if n >= least]))


def log_callback(rank, start):
    from fastai.callback.core import Callback
    class Log(Callback):
        "A line each 25 batches"
        def after_batch(self):
            if self.training and rank == 0 and self.train_iter % 25 == 0:
                print(f'{(time.time() - start) / 60:5.1f} min  {self.train_iter}/{self.n_iter}  loss {self.learn.smooth_loss.item():.4f}', flush=True)
    return Log()


def stage(net, pool, size, batches, bs, lr, start):
    "One size of the progressive resizing: one cycle"
    from fastai.callback import schedule  # noqa: F401 (gives Learner its fit_one_cycle)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    rank = int(os.environ.get('RANK', 0))
    data = Pool(pool / ('224' if size == 224 else '128'), size, True)
    def loader(n):
        sampler = torch.utils.data.RandomSampler(data, num_samples=n * bs, generator=torch.Generator().manual_seed(1000 * size + rank))
        return torch.utils.data.DataLoader(data, bs, sampler=sampler)
    learn = Learner(DataLoaders(loader(batches), loader(1)), net, bce, wd=.05, path=pool, cbs=[log_callback(rank, start)])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, lr, pct_start=.15)


def train(pool):
    from xraycap.encoder import FindingNet, save_encoder
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bare, start = FindingNet(len(FINDINGS) + len(SIDED)), time.time()
    ranks = int(os.environ.get('WORLD_SIZE', 1))
    net = bare
    if ranks > 1:
        torch.distributed.init_process_group('gloo')
        net = nn.parallel.DistributedDataParallel(bare)
    rank = int(os.environ.get('RANK', 0))
    for size, batches, bs, lr in STAGES:
        done = pool / f'stage{size}.pt'
        if done.exists(): bare.load_state_dict(torch.load(done, weights_only=True)); continue
        stage(net, pool, size, batches, bs, lr, start)
        if rank == 0:
            torch.save(bare.state_dict(), done)
            scores = auroc(bare, pool / 'val', size)
            print(f'{size} px, {(time.time() - start) / 60:.0f} min: val AUROC {mean_auroc(scores, 5):.3f}', {f: round(a, 2) for f, (a, _) in scores.items()}, flush=True)
        if ranks > 1: torch.distributed.barrier()
    if rank == 0: save_encoder(first(bare), pool / 'phantom_encoder.safetensors', FINDINGS)


def first(net):
    "The network with the outputs of `FINDINGS` only"
    head = nn.Linear(2048, len(FINDINGS))
    head.weight.data, head.bias.data = net.head.weight.data[:len(FINDINGS)], net.head.bias.data[:len(FINDINGS)]
    net.head = head
    return net


def test():
    "AUROC of the shipped weights on the simulated chen test split, from the stored features"
    from sklearn.metrics import roc_auc_score
    from xraycap.batches import pool_views
    from xraycap.encoder import CheXNet, load_finding_net, store_features
    studies = load_studies('phantom')
    studies = studies[studies.split == 'test']
    store, (net, findings) = store_features(studies, CheXNet('phantom')), load_finding_net()
    x = torch.from_numpy(np.stack([pool_views(store[uid]) for uid in studies.uid]))
    with torch.inference_mode(): z = net.head(x).numpy()
    rows = []
    for i, f in enumerate(findings):
        y = np.array([f in mesh_findings(m) for m in studies.mesh])
        rows.append((f, int(y.sum()), float(roc_auc_score(y, z[:, i])) if y.any() else np.nan))
    for f, n, a in sorted(rows, key=lambda r: -r[1]): print(f'{f:28} {n:4d} positives  AUROC {a:.3f}')
    print(f'mean over the findings with 20 or more positives: {np.mean([a for _, n, a in rows if n >= 20]):.3f}')


if __name__ == '__main__': {'render': render, 'train': train, 'test': test}[sys.argv[1]](*map(Path, sys.argv[2:]))
