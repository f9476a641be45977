"""A two-layer graph network on all items, trained to tell labelled from unlabelled ones.

Nodes are joined by similarity, A = (S - diag S) D^-1 + I with D the row sums of S - diag S. S is
never formed: it has the rank of the features, so A H = X (X' D^-1 H) - diag S D^-1 H + H costs two
thin products. As the features do not change, A X is X times one h x h matrix, and in the second
layer A (H w) acts on one column; an epoch costs two products of the pool with the hidden layer.

Source: Caramalau, Bhattarai and Kim 2021, "Sequential graph convolutional network for active
learning", equations 1 to 4.
Shapes: n = nodes (candidates, then labelled rows), T = rows of one block, d = features, w = hidden
width.
"""

import dataclasses
from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
import torch

from svp.seed import derive_seed, numpy_generator
from svp.strategies.auxiliary import adam
from svp.strategies.base import Budget, Int64Array, PoolView
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.points import Factors, Points, pool_points

Similarity = Literal["shifted", "cosine"]

WIDTH: Final = 128
_DROPOUT: Final = 0.3
_DECAY: Final = 5e-4
_SMALL: Final = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How the network is trained.

    Attributes:
        epochs: Steps on the whole graph.
        unlabelled_weight: Weight of the unlabelled term of the loss; 1.2 as published.
        similarity: `shifted` is (1 + cosine) / 2, never negative; `cosine` as published, whose
            row sums can vanish or turn negative for embeddings of both signs.
        lr: Of Adam.
    """

    epochs: int
    unlabelled_weight: float
    similarity: Similarity
    lr: float = 1e-3


def graph_cost(shape: PoolShape, epochs: int, nodes: int, b: int) -> Cost:
    """Return what training and scoring cost."""
    kept = min(shape.candidates, max(nodes, b)) if nodes else shape.candidates
    n = kept + shape.labelled
    d = shape.dim
    return Cost(
        bytes=shape.tile_bytes
        + 4 * n * (WIDTH + 32)
        + 48 * shape.candidates
        + 40 * d * d
        + 64 * d * WIDTH
        + 64 * 1024 * (d + WIDTH),
        flops=epochs * n * (4.0 * d * WIDTH + 8.0 * d) + 2.0 * n * d * d,
        passes=3.0 * epochs + 4.0,
    )


class Graph:
    """The graph, and products with its matrix.

    Args:
        unlabelled: Unit features of candidates.
        labelled: Unit features of labelled rows.
        similarity: See `Settings`.
        keep_bytes: May be held beyond that for A X.
    """

    def __init__(
        self, unlabelled: Points, labelled: Points, similarity: Similarity, keep_bytes: int
    ) -> None:
        self._parts = (unlabelled, labelled)
        self._shifted = similarity == "shifted"
        self.first_labelled = len(unlabelled)
        self.n = len(unlabelled) + len(labelled)
        _, first = next(unlabelled.blocks())
        self.d, self.device = first.x_Mh.shape[1], first.x_Mh.device
        self._self_n = torch.empty(self.n, dtype=torch.float64, device=self.device)
        for part, x_Td in self.blocks():
            square_T = x_Td.double().square().sum(dim=1)
            self._self_n[part] = (square_T + 1.0) / 2.0 if self._shifted else square_T
        ones_n = torch.ones(self.n, dtype=torch.float64, device=self.device)
        degree_n = self._similar(ones_n) - self._self_n
        small_n = degree_n.abs() < _SMALL
        self._inverse_n = torch.where(small_n, 0.0, 1.0 / torch.where(small_n, 1.0, degree_n))
        self._mix_dd, self._shift_d = self._mixture()
        self._kept: list[torch.Tensor] | None = None
        if 8 * self.n * self.d <= keep_bytes:
            self._kept = [self._smooth(part, x_Td) for part, x_Td in self.blocks()]

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (nodes, features (T, d))."""
        offset = 0
        for points in self._parts:
            for part, block in points.blocks() if len(points) else ():
                yield slice(offset + part.start, offset + part.stop), block.x_Mh
            offset += len(points)

    def smoothed(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (nodes, rows of A X)."""
        for index, (part, x_Td) in enumerate(self.blocks()):
            yield part, self._smooth(part, x_Td) if self._kept is None else self._kept[index]

    def times(self, u_n: torch.Tensor) -> torch.Tensor:
        """Return A u, (n,) float64."""
        scaled_n = self._inverse_n * u_n
        return self._similar(scaled_n) - self._self_n * scaled_n + u_n

    def times_transposed(self, g_n: torch.Tensor) -> torch.Tensor:
        """Return A' g, (n,) float64."""
        return self._inverse_n * (self._similar(g_n) - self._self_n * g_n) + g_n

    def _similar(self, u_n: torch.Tensor) -> torch.Tensor:
        """Return S u."""
        along_d = torch.zeros(self.d, dtype=torch.float64, device=self.device)
        for part, x_Td in self.blocks():
            along_d += (u_n[part].float() @ x_Td).double()
        found_n = torch.empty_like(u_n)
        side_d = along_d.float()
        for part, x_Td in self.blocks():
            found_n[part] = (x_Td @ side_d).double()
        return (found_n + u_n.sum()) / 2.0 if self._shifted else found_n

    def _mixture(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B and c with A X = X B + c - diag(S) D^-1 X."""
        mix_dd = torch.zeros(self.d, self.d, dtype=torch.float64, device=self.device)
        shift_d = torch.zeros(self.d, dtype=torch.float64, device=self.device)
        for part, x_Td in self.blocks():
            scaled_Td = x_Td * self._inverse_n[part][:, None].float()
            mix_dd += (x_Td.T @ scaled_Td).double()
            shift_d += scaled_Td.double().sum(dim=0)
        one_dd = torch.eye(self.d, dtype=torch.float64, device=self.device)
        if self._shifted:
            return (mix_dd / 2.0 + one_dd).float(), (shift_d / 2.0).float()
        return (mix_dd + one_dd).float(), torch.zeros_like(shift_d).float()

    def _smooth(self, part: slice, x_Td: torch.Tensor) -> torch.Tensor:
        own_T1 = (self._self_n[part] * self._inverse_n[part]).float()[:, None]
        return x_Td @ self._mix_dd + self._shift_d - own_T1 * x_Td


class Network:
    """The two layers: A X W + b, ReLU, dropout; A H w + c, sigmoid.

    Args:
        graph: The graph.
        settings: How it is trained.
        seed: Of weights and dropout.
        name: Of the strategy, which separates its random numbers.
    """

    def __init__(self, graph: Graph, settings: Settings, seed: int, name: str) -> None:
        self._graph, self._settings = graph, settings
        generator = numpy_generator(seed, name)
        bound = WIDTH**-0.5

        def drawn(*shape: int, within: float) -> torch.Tensor:
            values = generator.uniform(-within, within, size=shape).astype(np.float32)
            return torch.from_numpy(values).to(graph.device)

        self._weight_dw = drawn(graph.d, WIDTH, within=bound)
        self._bias_w = drawn(WIDTH, within=bound)
        self._last_w = drawn(WIDTH, within=1.0)
        self._last = drawn(1, within=1.0)
        self._mask = torch.Generator(device=graph.device)
        self._mask.manual_seed(derive_seed(seed, name, "dropout"))
        self._hidden_nw = torch.empty(graph.n, WIDTH, device=graph.device)

    @property
    def hidden_nw(self) -> torch.Tensor:
        """Hidden layer of every node after the last forward pass, (n, w) float32."""
        return self._hidden_nw

    def train(self) -> list[float]:
        """Train; return the loss of every epoch."""
        parameters = [self._weight_dw, self._bias_w, self._last_w, self._last]
        optimiser = adam(parameters, self._settings.lr, _DECAY)
        losses = []
        for _ in range(self._settings.epochs):
            score_n = self.forward(dropout=True)
            gradients, loss = self._gradients(score_n)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            losses.append(loss)
        return losses

    def forward(self, *, dropout: bool) -> torch.Tensor:
        """Return the logit that each node is labelled, (n,) float64; fill the hidden layer."""
        graph = self._graph
        u_n = torch.empty(graph.n, dtype=torch.float64, device=graph.device)
        for part, smooth_Td in graph.smoothed():
            hidden_Tw = torch.addmm(self._bias_w, smooth_Td, self._weight_dw).relu_()
            if dropout:
                noise_Tw = torch.rand(hidden_Tw.shape, generator=self._mask, device=graph.device)
                hidden_Tw *= (noise_Tw >= _DROPOUT) / (1.0 - _DROPOUT)
            self._hidden_nw[part] = hidden_Tw
            u_n[part] = (hidden_Tw @ self._last_w).double()
        return graph.times(u_n) + self._last.double()

    def _gradients(self, score_n: torch.Tensor) -> tuple[list[torch.Tensor], float]:
        graph, cut = self._graph, self._graph.first_labelled
        weight = self._settings.unlabelled_weight
        known, unknown = score_n[cut:], score_n[:cut]
        softplus = torch.nn.functional.softplus
        loss = float(softplus(-known).mean() + weight * softplus(unknown).mean())
        slope_n = torch.cat(
            [
                weight * torch.sigmoid(unknown) / max(1, len(unknown)),
                -torch.sigmoid(-known) / max(1, len(known)),
            ]
        )
        back_n = graph.times_transposed(slope_n).float()
        weight_dw = torch.zeros_like(self._weight_dw)
        bias_w, last_w = torch.zeros_like(self._bias_w), torch.zeros_like(self._last_w)
        for part, smooth_Td in graph.smoothed():
            hidden_Tw = self._hidden_nw[part]
            last_w += hidden_Tw.T @ back_n[part]
            # Zero where ReLU or dropout cut; dropout enlarged what it kept.
            open_Tw = (hidden_Tw > 0) / (1.0 - _DROPOUT)
            inner_Tw = open_Tw * back_n[part][:, None] * self._last_w
            weight_dw += smooth_Td.T @ inner_Tw
            bias_w += inner_Tw.sum(dim=0)
        return [weight_dw, bias_w, last_w, slope_n.sum().float().reshape(1)], loss


def trained(
    view: PoolView, rows_U: Int64Array, seed: int, budget: Budget, settings: Settings, name: str
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Train on these candidates and all labelled rows.

    Returns:
        Probability that each node is labelled (n,), hidden layer (n, w), and how many nodes are
        candidates; these come first, in the order given.
    """
    features = [
        pool_points(view, rows, seed, budget, space="input", norm="l2")
        for rows in (rows_U, view.centres(seed))
    ]
    graph = Graph(features[0], features[1], settings.similarity, budget.cache_bytes)
    network = Network(graph, settings, seed, name)
    network.train()
    score_n = torch.sigmoid(network.forward(dropout=False))
    return score_n, network.hidden_nw, graph.first_labelled


def as_points(x_nw: torch.Tensor) -> Points:
    """Return rows of a tensor as points."""
    return Points(Factors(x_nw))
