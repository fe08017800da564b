"Training: epochs of 2,069 studies from stored features, and the same batches through the plain decoder, step by step."
import json
import resource
import tempfile
from pathlib import Path
from time import process_time

import numpy as np
import torch

from bench.common import row
from xraycap.attention import AttentionDecoder
from xraycap.batches import caption_dls
from xraycap.fast import fast_decoder
from xraycap.features import FeatureStore
from xraycap.lstm import masked_loss
from xraycap.studies import load_studies
from xraycap.text import Vocab, clean_chen


def random_store(folder, uids):
    "A feature store of random float16 numbers for these studies."
    path, rng = Path(folder)/"random.f16", np.random.default_rng(0)
    block = np.maximum(rng.standard_normal((64, 98, 1024), dtype=np.float32), 0).astype(np.float16)
    with open(path, "wb") as f:
        for i in range(0, len(uids), 64): f.write(block[:len(uids) - i].tobytes())
    path.with_suffix(".json").write_text(json.dumps(dict(rows={str(u): i for i, u in enumerate(uids)})))
    return FeatureStore(path)


def resident():
    "GiB of memory that this process has had at most, pages of mapped files included."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def loss_of(decoder, features, tokens_in, tokens_out): return masked_loss(decoder(features, tokens_in), tokens_out)


def train_on(batch, decoder, optimizer):
    "One step of training: the loss and the seconds it took."
    start = process_time()
    value = loss_of(decoder, *batch)
    value.backward()
    torch.nn.utils.clip_grad_norm_([p for p in decoder.parameters() if p.requires_grad], 1.)
    optimizer.step()
    optimizer.zero_grad()
    return value.item(), process_time() - start


def measure(limit):
    studies = load_studies()
    train = studies[studies.split == "train"]
    vocab = Vocab.from_texts(train.findings.map(clean_chen))
    torch.manual_seed(0)
    ours, plain = (AttentionDecoder(len(vocab), dropout=0.) for _ in range(2))  # without dropout: the same losses
    ours = fast_decoder(ours)
    optimizers = [torch.optim.AdamW([p for p in d.parameters() if p.requires_grad], 1e-3) for d in (ours, plain)]
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(folder, studies.uid)
        loader = caption_dls(studies[studies.split != "test"], store, vocab, device="cpu").train
        for i, batch in enumerate(loader):  # all are read, some trained on, before anything else takes memory
            if i < 4: train_on(batch, ours, optimizers[0])
        memory, epochs = resident(), []
        for _ in range(3):
            rows, start = [], process_time()
            for batch in loader:
                read = process_time() - start
                plain.load_state_dict(ours.state_dict())
                loss, seconds = train_on(batch, ours, optimizers[0])
                plain_loss, plain_seconds = train_on(batch, plain, optimizers[1])
                rows.append((read + seconds, read + plain_seconds, abs(loss - plain_loss)))
                start = process_time()
            epochs.append(rows)
    seconds, plain_seconds, apart = np.moveaxis(epochs, 2, 0)  # each (epochs, batches)
    name = f"training, an epoch of {len(train):,} studies"
    return [row(name, "s", seconds.sum(1), "step by step, same batches", plain_seconds.sum(1), 3),
            row("training, largest difference of a loss", "nats", apart.max().clip(1e-9), "goal", 1e-4, 1),
            row("training, resident memory", "GiB", memory, "goal", 2, 1)]
