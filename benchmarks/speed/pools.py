"""The pools on which selection is timed, as files that several processes read.

Overlapping Gaussian clumps of 512 dimensions with a linear proxy trained on the first rows. Sizes:
S and M have 50,000 items and 10 or 100 classes, L 200,000 and 1,000, XL as many as ImageNet.
"""

import dataclasses
import json
from pathlib import Path
from typing import Final

import numpy as np
import torch

from svp.proxies import LinearConfig, Proxy, Standardiser, fit_proxy, load_proxy
from svp.strategies.base import Int64Array, PoolView
from svp.strategies.keys import keys_of

_CHUNK: Final = 65_536
_VIEW_NOISE: Final = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Sizes of one pool and one batch.

    Attributes:
        name: `quick`, `S`, `M`, `L` or `XL`.
        n: Items.
        classes: C.
        labelled: Labelled rows.
        budget: b.
        dtype: Of the stored embeddings.
        separation: Spread of the clumps' centres; more classes need more to be told apart.
        dim: d.
    """

    name: str
    n: int
    classes: int
    labelled: int
    budget: int
    dtype: str = "float32"
    separation: float = 0.13
    dim: int = 512


CASES: Final = {
    case.name: case
    for case in (
        Case(name="quick", n=20_000, classes=10, labelled=1000, budget=500),
        Case(name="S", n=50_000, classes=10, labelled=1000, budget=1000),
        Case(name="M", n=50_000, classes=100, labelled=1000, budget=1000, separation=0.17),
        Case(name="L", n=200_000, classes=1000, labelled=50_000, budget=10_000, separation=0.22),
        Case(
            name="XL",
            n=1_281_167,
            classes=1000,
            labelled=10_000,
            budget=10_000,
            dtype="float16",
            separation=0.22,
        ),
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """A pool read from its folder.

    Attributes:
        case: Its sizes.
        x_Nd: Embeddings, in the case's dtype.
        y_N: Classes.
        proxy: The linear proxy.
        device: Where embeddings and proxy are.
    """

    case: Case
    x_Nd: torch.Tensor
    y_N: Int64Array
    proxy: Proxy
    device: torch.device

    def view(self, views: int = 0, rows: int | None = None) -> PoolView:
        """Return what a strategy sees: the first rows are labelled, the others candidates.

        Args:
            views: Stored views beside the plain one: the pool with noise of its own.
            rows: Only so many rows, of which at most a quarter is labelled; None: all.
        """
        n = min(rows or self.case.n, self.case.n)
        labelled = min(self.case.labelled, self.case.labelled if rows is None else n // 4)
        x = self.x_Nd[:n]
        return PoolView(
            embeddings_Nd=x,
            keys_N=keys_of(str(row) for row in range(n)),
            unlabelled_U=np.arange(labelled, n, dtype=np.int64),
            labelled_L=np.arange(labelled, dtype=np.int64),
            y_L=self.y_N[:labelled],
            n_classes=self.case.classes,
            proxy=self.proxy,
            views=tuple(self._noisy(x, seed) for seed in range(1, views + 1)),
        )

    def labels(self, rows: Int64Array) -> Int64Array:
        """Return the classes of these rows: the oracle of strategies that read labels."""
        return self.y_N[rows]

    def _noisy(self, x_Nd: torch.Tensor, seed: int) -> torch.Tensor:
        generator = torch.Generator(device=x_Nd.device).manual_seed(seed)
        view = x_Nd.clone()
        for part in view.split(_CHUNK):
            noise = torch.randn(part.shape, generator=generator, device=part.device)
            part += (_VIEW_NOISE * noise).to(part.dtype)
        return view


def write(case: Case, folder: Path, device: torch.device) -> float:
    """Make a pool and its proxy; return the proxy's accuracy on the candidates."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(case.classes, case.dim, generator=generator) * case.separation
    y = torch.randint(0, case.classes, (case.n,), generator=generator)
    x = torch.empty(case.n, case.dim, dtype=getattr(torch, case.dtype))
    for start in range(0, case.n, _CHUNK):
        part = y[start : start + _CHUNK]
        noise = torch.randn(len(part), case.dim, generator=generator)
        x[start : start + _CHUNK] = (centres[part] + noise).to(x.dtype)
    labelled = slice(0, case.labelled)
    proxy = fit_proxy(
        x[labelled].to(device),
        y[labelled].to(device),
        case.classes,
        LinearConfig(),
        standardiser=Standardiser.fit(x.to(device)),
        seed=0,
        device=device,
    )
    right = 0
    for start in range(case.labelled, case.n, _CHUNK):
        part = slice(start, start + _CHUNK)
        right += int((proxy.logits(x[part].to(device)).argmax(dim=1).cpu() == y[part]).sum())
    np.save(folder / "x.npy", x.numpy())
    np.save(folder / "y.npy", y.numpy())
    proxy.save(folder / "proxy.safetensors")
    described = json.dumps(dataclasses.asdict(case))
    (folder / "case.json").write_text(described, encoding="utf-8")
    return right / (case.n - case.labelled)


def read(folder: Path, device: torch.device) -> Pool:
    """Return the pool of a folder that `write` filled, in memory."""
    return Pool(
        case=Case(**json.loads((folder / "case.json").read_text(encoding="utf-8"))),
        x_Nd=torch.from_numpy(np.load(folder / "x.npy")).to(device),
        y_N=np.load(folder / "y.npy"),
        proxy=load_proxy(folder / "proxy.safetensors", device=device),
        device=device,
    )
