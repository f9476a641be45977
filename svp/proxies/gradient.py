"""Training of gradient proxies: all members at once, on tensors that already sit on the device.

Orders are drawn on the device, batches gathered there into one buffer, and no step waits for it;
with early stopping one number is read per epoch. All rows of a step go through one product, and
the slope of the loss by the logits is written down instead of recorded.

Shapes: M = members, N = pool, L = labelled rows, U = unlabelled rows, V = held-out rows,
B = labelled rows of a step, u = unlabelled rows of a step, l = rows that are learnt from,
d = features, C = classes.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch.nn import functional

from svp.errors import InputError
from svp.proxies.criterion import Criterion
from svp.proxies.methods import build_rule
from svp.proxies.mlp import batch_bounds
from svp.proxies.network import Members, NetworkConfig, NetworkProxy
from svp.proxies.objective import Objective
from svp.proxies.optimiser import Optimiser
from svp.proxies.proxy import FitReport
from svp.proxies.rates import learning_rates
from svp.proxies.rows import Orders, Source, StoredViews
from svp.proxies.standardiser import Standardiser
from svp.proxies.trainee import Trainee
from svp.seed import derive_seed, numpy_generator

_VALIDATION_ROWS: Final = 8192


def fit_network(
    x_Ld: torch.Tensor,
    y_L: torch.Tensor,
    n_classes: int,
    config: NetworkConfig,
    *,
    standardiser: Standardiser,
    seed: int,
    views: StoredViews | None = None,
    validation: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> NetworkProxy:
    """Train one proxy, an ensemble if `config.members` is above 1.

    Args:
        x_Ld: Raw embeddings of the labelled rows, on the device to train on.
        y_L: Their classes in [0, n_classes).
        n_classes: C.
        config: Settings.
        standardiser: Of the pool.
        seed: Decides initialisation, order, held-out rows, dropout and mixing; on a CPU the
            result is equal bit for bit.
        views: Stored views, which semi-supervised trainers need.
        validation: Raw embeddings (V, d) and classes (V,) for early stopping instead of a share
            of the labelled rows.

    Raises:
        InputError: If views are needed and missing, or do not fit the labelled rows.
    """
    seeds: tuple[int, ...] = (seed,)
    if config.members > 1:
        seeds = tuple(derive_seed(seed, "member", place) for place in range(config.members))
    members, report = _train(
        x_Ld,
        y_L,
        n_classes,
        config,
        standardiser=standardiser,
        seeds=seeds,
        views=views,
        validation=validation,
    )
    return NetworkProxy(standardiser.to(x_Ld.device), members, report, config)


def fit_network_seeds(
    x_Ld: torch.Tensor,
    y_L: torch.Tensor,
    n_classes: int,
    config: NetworkConfig,
    *,
    standardiser: Standardiser,
    seeds: Sequence[int],
    views: StoredViews | None = None,
) -> tuple[NetworkProxy, ...]:
    """Train one proxy per seed on the same labels, all as one batched model.

    With `validation` in the configuration all of them hold out the rows of the first seed.
    """
    if config.members != 1 or not seeds:
        raise InputError(
            "Several seeds must be given, with a configuration of one member. Got "
            f"{len(seeds)} seeds and {config.members} members. Correct one of them."
        )
    members, report = _train(
        x_Ld,
        y_L,
        n_classes,
        config,
        standardiser=standardiser,
        seeds=tuple(seeds),
        views=views,
        validation=None,
    )
    standardiser = standardiser.to(x_Ld.device)
    return tuple(
        NetworkProxy(standardiser, members.member(place), report, config)
        for place in range(len(seeds))
    )


class _Best:
    """The parameters of each member's best epoch; a tie is an improvement."""

    def __init__(self, members: Members, patience: int) -> None:
        count, device = len(members.bias_MC), members.bias_MC.device
        self._members, self._patience = members, patience
        self._kept = {name: value.detach().clone() for name, value in members.tensors().items()}
        self._loss_M = torch.full((count,), float("inf"), device=device)
        self._waited_M = torch.zeros(count, dtype=torch.int64, device=device)

    def end_epoch(self, loss_M: torch.Tensor) -> bool:
        """Keep what improved; return whether every member has waited long enough."""
        going_M = self._waited_M < self._patience
        better_M = going_M & (loss_M <= self._loss_M)
        self._loss_M = torch.where(better_M, loss_M, self._loss_M)
        self._waited_M = torch.where(better_M, 0, self._waited_M + 1)
        for name, value in self._members.tensors().items():
            place = better_M.view(-1, *[1] * (value.ndim - 1))
            self._kept[name] = torch.where(place, value.detach(), self._kept[name])
        return bool((self._waited_M >= self._patience).all())

    def members(self) -> Members:
        """Return the best members."""
        return Members.of_tensors(self._kept)


@torch.no_grad()
def _train(
    x_Ld: torch.Tensor,
    y_L: torch.Tensor,
    n_classes: int,
    config: NetworkConfig,
    *,
    standardiser: Standardiser,
    seeds: tuple[int, ...],
    views: StoredViews | None,
    validation: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[Members, FitReport]:
    device = x_Ld.device
    count = len(seeds)
    kept_L, held_V = _hold_out(len(y_L), config, seeds[0])
    if validation is not None:
        kept_L, held_V = torch.arange(len(y_L)), held_V[:0]
        x_Vd, y_V = (part.to(device) for part in validation)
    else:
        x_Vd, y_V = x_Ld[held_V.to(device)], y_L[held_V.to(device)]
    kept_L = kept_L.to(device)
    y_L = y_L[kept_L]
    source = Source(x_Ld, kept_L, config, standardiser=standardiser, views=views, members=count)

    def generators(what: str) -> list[torch.Generator]:
        return [
            torch.Generator(device=device).manual_seed(derive_seed(seed, "network", what))
            for seed in seeds
        ]

    drawn = Members.draw(config, x_Ld.shape[1], n_classes, seeds).to(device)
    trainee = Trainee(drawn, config, generators("dropout"))
    optimiser = Optimiser(trainee.parameter_P, trainee.gradient_P, config)
    rule = build_rule(
        config, members=count, rows=source.unlabelled, classes=n_classes, device=device
    )
    objective = Objective(Criterion(y_L, n_classes, config), rule, config)
    orders = Orders(len(y_L), generators("order"), resample=config.bootstrap)
    others = Orders(source.unlabelled, generators("unlabelled"))
    bounds = batch_bounds(len(y_L), config.batch_size, drop_last=config.drop_last)
    rates = learning_rates(config, len(bounds))
    shares_SM1 = _mixing(config, seeds, len(rates), device)
    best = None
    if config.patience is not None and len(y_V):
        best = _Best(trainee.members, config.patience)
        z_Vd = standardiser(x_Vd)
    step = 0
    for epoch in range(config.epochs):
        order_ML = orders.epoch()
        if config.unlabelled_order == "anew":
            others.restart()
        for start, stop in bounds:
            rows_MB = order_ML[:, start:stop]
            y_MB = y_L.take(rows_MB)
            share_M1 = None if shares_SM1 is None else shares_SM1[step]
            if source.unlabelled:
                size = min(source.unlabelled, config.unlabelled_ratio * (stop - start))
                rows_Mu = others.next(size)
                z_MCR, done = trainee.forward(source.all_rows(rows_MB, rows_Mu, epoch))
                slope_MCl = objective.with_unlabelled(z_MCR, y_MB, rows_Mu, step / len(rates))
            else:
                x_MBd = source.labelled_rows(rows_MB, epoch)
                if share_M1 is not None:
                    x_MBd = torch.lerp(x_MBd.flip(1), x_MBd, share_M1[:, :, None])
                z_MCR, done = trainee.forward(x_MBd)
                slope_MCl = objective.labelled(z_MCR, y_MB, share_M1)
            trainee.backward(done, slope_MCl)
            optimiser.step(rates[step])
            step += 1
        if best is not None and best.end_epoch(_validate(trainee.members, z_Vd, y_V, config)):
            break
    seen = torch.unique(y_L)
    report = FitReport(
        rows=len(y_L),
        classes_seen=len(seen),
        constant=int(seen[0]) if len(seen) == 1 else None,
        steps=step,
        converged=None,
        loss=float(objective.loss().mean()),
        gradient=float("nan"),
        validation_rows=len(y_V),
    )
    return (trainee.stop() if best is None else best.members()), report


def _hold_out(rows: int, config: NetworkConfig, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows to train on and those held out, both ascending; at least one trains."""
    held = min(round(config.validation * rows), rows - 1)
    generator = torch.Generator().manual_seed(derive_seed(seed, "network", "validation"))
    order = torch.randperm(rows, generator=generator)
    return order[held:].sort().values, order[:held].sort().values


def _mixing(
    config: NetworkConfig, seeds: tuple[int, ...], steps: int, device: torch.device
) -> torch.Tensor | None:
    """Return each step's share of a row's own part, (steps, M, 1); None without mixup."""
    if not config.mixup:
        return None
    drawn = [
        torch.from_numpy(
            numpy_generator(seed, "network", "mixup").beta(config.mixup, config.mixup, size=steps)
        )
        for seed in seeds
    ]
    return torch.stack(drawn, dim=1).float().to(device)[:, :, None]


@torch.no_grad()
def _validate(
    members: Members, z_Vd: torch.Tensor, y_V: torch.Tensor, config: NetworkConfig
) -> torch.Tensor:
    """Return the mean loss of each member on the held-out rows, (M,)."""
    count = len(members.bias_MC)
    total_M = torch.zeros(count, device=z_Vd.device)
    for start in range(0, len(y_V), _VALIDATION_ROWS):
        part = z_Vd[start : start + _VALIDATION_ROWS]
        y_MB = y_V[start : start + _VALIDATION_ROWS].expand(count, -1)
        z_MCB = members.logits(part.expand(count, *part.shape))
        total_M += functional.cross_entropy(
            z_MCB, y_MB, reduction="none", label_smoothing=config.label_smoothing
        ).sum(dim=1)
    return total_M / len(y_V)
