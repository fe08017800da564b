"What PyTorch gives for nothing: the plain code of the chapters, with one thing changed each time."
import copy
import shutil

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bench.common import rates, rounds, row
from bench.search import random_decoder, random_features
from bench.training import loss_of
from xraycap.attention import gru_step
from xraycap.encoder import ImageEncoder
from xraycap.phantom import phantom
from xraycap.transformer import dot_attention

ROWS, HIDDEN = 192, 256  # hypotheses of 64 studies, and the numbers of a state


def compared(name, unit, count, plain, peer, changed):
    "A row of two functions that take turns; `count` is what each of them does."
    with torch.inference_mode(mode="training" not in name):
        seconds = rounds({"plain": plain, "changed": changed}, 4)
    if unit == "s": return row(name, unit, seconds["changed"], peer, seconds["plain"])
    return row(name, unit, rates(seconds["changed"], count), peer, rates(seconds["plain"], count))


def of_encoder(compiler):
    encoder, images = ImageEncoder("chest"), np.stack([phantom(uid).frontal for uid in range(8)])
    x = encoder.prepare(torch.from_numpy(images))
    last, x_last = (o.to(memory_format=torch.channels_last) for o in (copy.deepcopy(encoder), x))
    yield compared("encoder", "images/s", 8, lambda: encoder(x), "channels_last", lambda: last(x_last))
    if not compiler: return
    for name, options in (("torch.compile", {}), ("torch.compile, freezing", {"freezing": True})):
        compiled = torch.compile(copy.deepcopy(encoder), options=options)
        yield compared("encoder", "images/s", 8, lambda: encoder(x), name, lambda: compiled(x))


def of_decoder(compiler):
    decoder, x, tokens = random_decoder(763), random_features(64), torch.randint(4, 763, (64, 41))
    cell, words = nn.GRUCell(556, HIDDEN), torch.randn(ROWS, 556)
    h, layers = torch.randn(ROWS, HIDDEN), (nn.Linear(556, 3 * HIDDEN), nn.Linear(HIDDEN, 3 * HIDDEN))

    def steps():
        for _ in range(50): gru_step(layers[0](words), layers[1](h), h)

    def cells():
        for _ in range(50): cell(words, h)

    yield compared("GRU, 192 rows", "steps/s", 50, steps, "nn.GRUCell", cells)
    if not compiler: return
    compiled = random_decoder(763)
    compiled.step = torch.compile(compiled.step)
    memory, state = decoder.start(x)
    state, last = tuple(s.repeat_interleave(3, 0) for s in state), torch.randint(4, 763, (ROWS,))
    yield compared("attention decoder, 192 rows", "steps/s", 1, lambda: decoder.step(last, state, memory),
                   "torch.compile", lambda: compiled.step(last, state, memory))

    def train(decoder): loss_of(decoder, x, tokens[:, :-1], tokens[:, 1:]).backward()

    yield compared("attention decoder, training step", "s", 1, lambda: train(decoder), "torch.compile of each step",
                   lambda: train(compiled))


def of_transformer():
    Q, K, V = (torch.randn(64, 8, n, 32) for n in (40, 98, 98))
    yield compared("Transformer's attention, 64 reports", "times/s", 1, lambda: dot_attention(Q, K, V)[0],
                   "scaled_dot_product_attention", lambda: F.scaled_dot_product_attention(Q, K, V))


def measure(_):
    compiler = any(map(shutil.which, ("c++", "g++", "clang++")))  # torch.compile needs one
    return [*of_encoder(compiler), *of_decoder(compiler), *of_transformer()]
