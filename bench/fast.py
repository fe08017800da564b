"The plain code of the chapters beside its fast twins of `xraycap.fast`: the same weights, the same results."
import numpy as np
import torch

import xraycap.fast
import xraycap.search
from bench.common import rates, rounds, row
from bench.search import random_decoder, random_features
from bench.training import loss_of
from xraycap.encoder import ImageEncoder
from xraycap.phantom import phantom

WORDS = 40  # of a report in training


def measure(_):
    decoder, x = random_decoder(763), random_features(64)
    encoder, images = ImageEncoder("chest"), torch.from_numpy(np.stack([phantom(uid).frontal for uid in range(8)]))
    twin, fused = xraycap.fast.fast_decoder(decoder), xraycap.fast.fused(encoder)
    tokens = torch.randint(4, 763, (64, WORDS + 1))

    def train(decoder): loss_of(decoder, x, tokens[:, :-1], tokens[:, 1:]).backward()

    def encode(encoder):
        with torch.inference_mode(): encoder(images)

    seconds = rounds({
        "training, plain": lambda: train(decoder), "training, fast": lambda: train(twin),
        "encoder, plain": lambda: encode(encoder), "encoder, fast": lambda: encode(fused),
        "greedy, plain": lambda: xraycap.search.greedy_search(decoder, x[:2]),
        "greedy 1, fast": lambda: [xraycap.fast.greedy_search(decoder, x[i:i + 1]) for i in range(4)],
        "greedy 64, fast": lambda: xraycap.fast.greedy_search(decoder, x),
        "beam, plain": lambda: xraycap.search.beam_search(decoder, x[:2]),
        "beam 1, fast": lambda: [xraycap.fast.beam_search(decoder, x[i:i + 1]) for i in range(4)],
        "beam 64, fast": lambda: xraycap.fast.beam_search(decoder, x)}, 4)
    count = {"encoder, plain": 8, "encoder, fast": 8, "greedy, plain": 2, "greedy 1, fast": 4, "greedy 64, fast": 64,
             "beam, plain": 2, "beam 1, fast": 4, "beam 64, fast": 64}
    rate = {name: rates(seconds[name], n) for name, n in count.items()}
    training = f"training step, 64 reports of {WORDS} words"
    found = [row("encoder, 224 x 224", "images/s", rate["encoder, fast"], "plain", rate["encoder, plain"]),
             row(training, "s", seconds["training, fast"], "plain", seconds["training, plain"])]
    for name, search in (("greedy search", "greedy"), ("beam search, k=3", "beam")):
        for n in (1, 64):
            ours, plain = rate[f"{search} {n}, fast"], rate[f"{search}, plain"]
            found.append(row(f"{name}, batch {n}", "reports/s", ours, "plain", plain))
    return found
