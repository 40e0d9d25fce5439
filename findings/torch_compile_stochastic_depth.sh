#!/usr/bin/env bash
# Stochastic depth under torch.compile, layer by layer: `bernoulli_` has a graph for each rate.
#
# One would guess: layers of the same code whose rates differ, as stochastic depth has them, share one or two compiled
# graphs, since torch takes a float that changes as a number of the graph's input.
# What happens: `bernoulli_(keep)` fixes its number. Each layer is compiled anew until the limit of eight graphs is
# reached, and the layers after that run uncompiled. The same draw written as `uniform_() < keep` has two graphs.
# Matters to: who compiles the layers of a vision or point transformer one by one ("regional compilation") and trains
# with stochastic depth, which as in timm is written with `bernoulli_`.
# Versions: torch 2.13.0 (CPU). Seen on 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch
from torch import nn
from torch._dynamo.utils import counters


class Layer(nn.Module):
    def __init__(self, rate, draw):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.rate = rate
        self.draw = draw

    def forward(self, x):
        keep = 1 - self.rate
        kept = x.new_empty(len(x), 1)
        kept = kept.bernoulli_(keep) if self.draw == "bernoulli_" else (kept.uniform_() < keep).to(x.dtype)
        return x + self.linear(x) * kept / keep


def graphs_of(draw):
    torch.compiler.reset()
    counters.clear()
    layers = nn.Sequential(*(Layer(rate, draw) for rate in torch.linspace(0.01, 0.3, 12).tolist()))
    for layer in layers:
        layer.compile(backend="eager")
    layers(torch.rand(4, 8)).sum().backward()
    return counters["stats"]["unique_graphs"]


print("torch", torch.__version__, "limit of graphs", torch._dynamo.config.recompile_limit)
found = {draw: graphs_of(draw) for draw in ("bernoulli_", "uniform_() < keep")}
print("guess: twelve layers share one or two graphs")
print("seen: ", found)
same = found["bernoulli_"] == torch._dynamo.config.recompile_limit == 8 and found["uniform_() < keep"] <= 3
raise SystemExit(None if same else "the behavior has changed")
PYTHON
