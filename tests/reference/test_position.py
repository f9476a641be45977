"""Reading the pool as it lies: where bits allow it, and the same picks where they do not."""

import dataclasses

import numpy as np
import pytest
import torch

from svp.proxies import LinearConfig, Proxy, Standardiser, fit_proxy
from svp.strategies.base import Int64Array, PoolView
from svp.strategies.block import BLOCK_ROWS
from svp.strategies.catalog import build_strategy, run_strategy
from svp.strategies.keys import keys_of
from svp.strategies.margin import margin
from svp.strategies.position import position_free

PER_LOGITS = ("margin", "least_confidence", "entropy", "mase", "base")


class _Crooked(Proxy):
    """Rounds differently in the last rows of every block, as some libraries do."""

    kind = "crooked"

    def __init__(self, straight: Proxy) -> None:
        super().__init__(straight.standardiser, straight.head, straight.report)
        self._straight = straight

    def hidden(self, x_Bd: torch.Tensor) -> torch.Tensor:
        return self._straight.hidden(x_Bd)

    def logits(self, x_Bd: torch.Tensor) -> torch.Tensor:
        z_BC = self._straight.logits(x_Bd)
        z_BC[1000:] = z_BC[1000:] * (1.0 + 2.0**-22)
        return z_BC

    def tensors(self) -> dict[str, torch.Tensor]:
        return self._straight.tensors()

    def settings(self) -> dict[str, object]:
        return self._straight.settings()


class _Stored:
    """Rows that are fetched, and remembers which."""

    def __init__(self, x_Nd: torch.Tensor) -> None:
        self._x_Nd = x_Nd
        self.asked: list[Int64Array] = []

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self._x_Nd), self._x_Nd.shape[1])

    @property
    def device(self) -> torch.device:
        return self._x_Nd.device

    def gather(self, rows_M: Int64Array) -> torch.Tensor:
        self.asked.append(rows_M)
        return self._x_Nd[torch.from_numpy(rows_M)]


def _pool(n: int = 5000, d: int = 24, classes: int = 7) -> PoolView:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, d, generator=generator)
    # Twins, so that ties are decided somewhere.
    x[n // 2 :] = x[: n - n // 2]
    y = torch.randint(0, classes, (300,), generator=generator)
    proxy = fit_proxy(x[:300], y, classes, LinearConfig(), standardiser=Standardiser.fit(x), seed=0)
    return PoolView(
        embeddings_Nd=x,
        keys_N=keys_of(f"{row}.png" for row in range(n)),
        unlabelled_U=np.arange(300, n, dtype=np.int64),
        labelled_L=np.arange(300, dtype=np.int64),
        y_L=y.numpy(),
        n_classes=classes,
        proxy=proxy,
    )


def _shuffled(view: PoolView) -> tuple[PoolView, Int64Array]:
    """Return the same pool in another order, and the old row of each new one."""
    old_N = np.random.default_rng(5).permutation(len(view.keys_N))
    new_N = np.argsort(old_N)
    labelled = new_N[view.labelled_L]
    order = np.argsort(labelled)
    assert isinstance(view.embeddings_Nd, torch.Tensor)
    again = dataclasses.replace(
        view,
        embeddings_Nd=view.embeddings_Nd[torch.from_numpy(old_N)],
        keys_N=view.keys_N[old_N],
        unlabelled_U=np.sort(new_N[view.unlabelled_U]),
        labelled_L=labelled[order],
        y_L=view.y_L[order],
    )
    return again, old_N


def _margin(z_TC: torch.Tensor) -> torch.Tensor:
    return margin(z_TC, "prob")


def test_a_proxy_that_rounds_by_position_is_noticed() -> None:
    view = _pool()
    straight = view.required_proxy()
    assert isinstance(straight, Proxy)
    cpu = torch.device("cpu")
    assert not position_free(_Crooked(straight), _margin, 24, cpu)
    crooked = torch.arange(BLOCK_ROWS) * 1e-7
    assert not position_free(straight, lambda z_TC: _margin(z_TC) + crooked, 24, cpu)


@pytest.mark.parametrize("name", PER_LOGITS)
@pytest.mark.parametrize("crooked", [False, True])
def test_the_order_of_the_pool_changes_no_pick(name: str, crooked: bool) -> None:
    view = _pool()
    straight = view.required_proxy()
    assert isinstance(straight, Proxy)
    view = dataclasses.replace(view, proxy=_Crooked(straight) if crooked else straight)
    again, old_N = _shuffled(view)
    strategy = build_strategy(name)
    first, second = run_strategy(strategy, view, 400, 1), run_strategy(strategy, again, 400, 1)
    assert old_N[second.rows_b].tolist() == first.rows_b.tolist()
    assert second.utility_b.tolist() == first.utility_b.tolist()


@pytest.mark.parametrize("name", PER_LOGITS)
def test_stored_rows_are_read_in_the_order_in_which_they_lie(name: str) -> None:
    view = _pool()
    assert isinstance(view.embeddings_Nd, torch.Tensor)
    if not position_free(view.required_proxy(), _margin, 24, torch.device("cpu")):
        pytest.skip("this machine's products depend on the position")
    stored = _Stored(view.embeddings_Nd)
    streamed = run_strategy(
        build_strategy(name), dataclasses.replace(view, embeddings_Nd=stored), 400, 1
    )
    in_memory = run_strategy(build_strategy(name), view, 400, 1)
    assert streamed.rows_b.tolist() == in_memory.rows_b.tolist()
    # The check for NaN reads everything once, candidates first; then comes the strategy.
    reading = np.concatenate(stored.asked)[len(view.keys_N) :]
    assert reading.tolist() == view.unlabelled_U.tolist()
