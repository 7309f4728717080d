"""Seconds that a step spends on the network, from message sizes and a stated network. All of it is arithmetic.

Symbols: W ranks, g GPUs a node, N = W/g nodes, b pairs of a rank, B = W·b, D width, V views, C captions, K = V·C.
Bytes of rank's features: c = (V + C + K)·b·D·4; of all ranks': S = W·c. Gradients: M = 4·parameters.

- all-gather, ring over nodes: each node takes in (N−1)/N·S through its network card, each GPU (W−1)/W·S inside;
- all-reduce: twice that, for M or S; reduce-scatter: once;
- chunks passed round (as in SigLIP): W−1 hops of c forward; in the backward pass the features once more and, with
  them, their gradients: three times the volume of one round, hidden behind the logits of the chunk at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOAT32 = 4


@dataclass(frozen=True)
class Network:
    """What connects GPUs."""

    node_gbit: float = 100.0
    """Gigabits a second in and, at the same time, out of a node."""
    inside_gbyte: float = 200.0
    """Gigabytes a second of a GPU to its neighbours in the node."""
    latency_us: float = 15.0
    """Microseconds that a message takes before its first byte."""
    gpus_per_node: int = 8

    def _seconds(self, total: float, ranks: int) -> float:
        """One way round for `total` bytes spread over the ranks: the slower of the card and the links inside."""
        nodes = max(1, math.ceil(ranks / self.gpus_per_node))
        outside = (nodes - 1) / nodes * total / (self.node_gbit / 8 * 1e9)
        inside = (ranks - 1) / ranks * total / (self.inside_gbyte * 1e9)
        return max(outside, inside if ranks > nodes else 0.0)

    def all_gather(self, total: float, ranks: int) -> float:
        """Seconds until every rank has all `total` bytes; a reduce-scatter takes as long."""
        return self._seconds(total, ranks) + (ranks - 1) * self.latency_us / 1e6 if ranks > 1 else 0.0

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds until every rank has the sum of messages of `size` bytes."""
        return 2 * self._seconds(size, ranks) + 2 * math.log2(ranks) * self.latency_us / 1e6 if ranks > 1 else 0.0

    def passed_round(self, chunk: float, ranks: int) -> float:
        """Seconds for every rank's `chunk` bytes to visit all others, neighbour by neighbour."""
        outside = chunk / (self.node_gbit / 8 * 1e9) if ranks > self.gpus_per_node else 0.0
        hop = max(outside, chunk / (self.inside_gbyte * 1e9) if self.gpus_per_node > 1 else 0.0)
        return (ranks - 1) * (hop + self.latency_us / 1e6)


@dataclass(frozen=True)
class Work:
    """What one step computes and sends."""

    pair_seconds: float
    """Forward, backward and optimiser of one pair on one GPU, without the losses over other ranks' pairs."""
    parameters: float = 156e6
    """ViT-B/16 and CLIP's text tower 149.6 M, fusion 6.4 M."""
    width: int = 512
    """D."""
    views: int = 2
    captions: int = 1
    float32_tflops: float = 19.5
    """Of the losses' matrix products."""
    overlap: float = 0.9
    """Share of the backward pass behind which DDP hides the gradients' all-reduce."""

    @property
    def rows(self) -> int:
        """Vectors of a pair that others see: V + C + K."""
        return self.views + self.captions + self.views * self.captions

    def features(self, pairs: int) -> float:
        """Bytes of the features of `pairs` pairs."""
        return float(self.rows * pairs * self.width * FLOAT32)

    def losses(self, local: int, everyone: int) -> float:
        """Seconds for logits of b × B, forward, again, and both gradients: 2·K for alignment, K² for the fusion."""
        matrices = 2 * self.views * self.captions + (self.views * self.captions) ** 2
        return 4 * 2.0 * matrices * local * everyone * self.width / (self.float32_tflops * 1e12)


@dataclass(frozen=True)
class Step:
    """Seconds of one step by what they are spent on."""

    compute: float
    losses: float
    gradients: float
    """All-reduce that is not hidden behind the backward pass."""
    gathered: float
    """Features all-gathered, their gradients all-reduced, as it is built (losses/gather.py)."""
    scattered: float
    """The same with a reduce-scatter in the backward pass."""
    chunked: float
    """The same in chunks passed round, as far as the losses do not hide it."""

    def seconds(self, exchange: str = "gathered") -> float:
        """The whole step with that way of exchanging features."""
        return self.compute + self.losses + self.gradients + float(getattr(self, exchange))

    def efficiency(self, exchange: str = "gathered") -> float:
        """Share of the step in which towers and fusion are computed."""
        return self.compute / self.seconds(exchange)


def step(work: Work, network: Network, ranks: int, everyone: int) -> Step:
    """One step of B = `everyone` pairs on W = `ranks` ranks; B must be a multiple of W."""
    local = everyone // ranks
    compute, losses = local * work.pair_seconds, work.losses(local, everyone)
    gradients = network.all_reduce(FLOAT32 * work.parameters, ranks)
    total = work.features(everyone)
    there = network.all_gather(total, ranks)
    chunks = 3 * network.passed_round(work.features(local), ranks)
    return Step(
        compute,
        losses,
        max(0.0, gradients - work.overlap * 2 / 3 * compute),
        there + network.all_reduce(total, ranks),
        2 * there,
        max(0.0, chunks - losses),
    )
