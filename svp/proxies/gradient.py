"""Training of gradient proxies: all members at once, on tensors that already sit on the device.

Orders are drawn on the device, batches gathered there, and no step waits for it; with early
stopping one number is read per epoch.

Shapes: M = members, N = pool, L = labelled rows, U = unlabelled rows, V = held-out rows,
B = labelled rows of a step, u = unlabelled rows of a step, d = features, C = classes.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch.nn import functional

from svp.errors import InputError
from svp.proxies.methods import build_rule
from svp.proxies.mlp import batch_bounds
from svp.proxies.network import Members, NetworkConfig, NetworkProxy
from svp.proxies.optimiser import Optimiser
from svp.proxies.proxy import FitReport
from svp.proxies.rates import learning_rates
from svp.proxies.rows import Orders, Source, StoredViews
from svp.proxies.standardiser import Standardiser
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


class _Criterion:
    """The loss on labelled rows."""

    def __init__(self, y_L: torch.Tensor, n_classes: int, config: NetworkConfig) -> None:
        self._smoothing = config.label_smoothing
        self._weight_C: torch.Tensor | None = None
        if config.class_weights == "balanced":
            count_C = torch.zeros(n_classes, device=y_L.device)
            count_C.scatter_add_(0, y_L, torch.ones_like(y_L, dtype=torch.float32))
            # The mean weight over the rows is 1, so the learning rate keeps its meaning.
            seen = (count_C > 0).sum()
            self._weight_C = len(y_L) / (seen * count_C.clamp(min=1))

    def rows(self, z_MCB: torch.Tensor, y_MB: torch.Tensor) -> torch.Tensor:
        """Return the loss of each row, (M, B)."""
        loss_MB = functional.cross_entropy(
            z_MCB, y_MB, reduction="none", label_smoothing=self._smoothing
        )
        return loss_MB if self._weight_C is None else loss_MB * self._weight_C[y_MB]

    def __call__(
        self, z_MCB: torch.Tensor, y_MB: torch.Tensor, share_M1: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the mean over the batch, (M,).

        Args:
            z_MCB: Logits.
            y_MB: Classes.
            share_M1: With mixup, the share of each row's own target; the rest is its partner's.
                Cross-entropy is linear in the target, so this is the loss of the soft one.
        """
        loss_MB = self.rows(z_MCB, y_MB)
        if share_M1 is not None:
            loss_MB = share_M1 * loss_MB + (1.0 - share_M1) * self.rows(z_MCB, y_MB.flip(1))
        return loss_MB.mean(dim=1)


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
    source = Source(x_Ld, kept_L, config, standardiser=standardiser, views=views)
    members = Members.draw(config, x_Ld.shape[1], n_classes, seeds).to(device)
    parameters = members.parameters()
    optimiser = Optimiser(parameters, config)
    criterion = _Criterion(y_L, n_classes, config)
    rule = None
    if config.reads_views and source.unlabelled:
        rule = build_rule(
            config, members=count, rows=source.unlabelled, classes=n_classes, device=device
        )

    def generators(what: str) -> list[torch.Generator]:
        return [
            torch.Generator(device=device).manual_seed(derive_seed(seed, "network", what))
            for seed in seeds
        ]

    orders = Orders(len(y_L), generators("order"), resample=config.bootstrap)
    others = Orders(source.unlabelled, generators("unlabelled"))
    dropping = generators("dropout")
    bounds = batch_bounds(len(y_L), config.batch_size)
    rates = learning_rates(config, len(bounds))
    shares_SM1 = _mixing(config, seeds, len(rates), device)
    best = None
    if config.patience is not None and len(y_V):
        best = _Best(members, config.patience)
        z_Vd = standardiser(x_Vd)
    for parameter in parameters:
        parameter.requires_grad_(True)
    step = 0
    loss_M = torch.zeros(count, device=device)
    for epoch in range(config.epochs):
        order_ML = orders.epoch()
        for start, stop in bounds:
            rows_MB = order_ML[:, start:stop]
            y_MB = y_L[rows_MB]
            x_MBd = source.labelled_rows(rows_MB, epoch)
            if rule is None:
                share_M1 = None if shares_SM1 is None else shares_SM1[step]
                if share_M1 is not None:
                    x_MBd = torch.lerp(x_MBd.flip(1), x_MBd, share_M1[:, :, None])
                z_MCB = _forward(members, x_MBd, config, dropping)
                loss_M = criterion(z_MCB, y_MB, share_M1)
            else:
                size = min(source.unlabelled, config.unlabelled_ratio * (stop - start))
                rows_Mu = others.next(size)
                weak_Mud, strong_Mud = source.unlabelled_rows(rows_Mu, epoch, rule.uses_strong)
                z_MCB, weak_MCu, student_MCu = _three(
                    members, x_MBd, weak_Mud, strong_Mud, config, dropping
                )
                targets = rule.targets(weak_MCu, rows_Mu)
                # The mean over all u rows, those of weight 0 included.
                weight_Mu = targets.weight_M * rule.weight(step / len(rates))
                unlabelled_M = (weight_Mu * targets.losses(student_MCu)).mean(dim=1)
                loss_M = criterion(z_MCB, y_MB, None) + config.unlabelled_weight * unlabelled_M
                further_M = rule.regulariser(student_MCu, targets)
                if further_M is not None:
                    loss_M = loss_M + further_M
            # Members share no parameter: the gradient of the sum is each member's own.
            optimiser.step(torch.autograd.grad(loss_M.sum(), parameters), rates[step])
            step += 1
        if best is not None and best.end_epoch(_validate(members, z_Vd, y_V, config)):
            break
    for parameter in parameters:
        parameter.requires_grad_(False)
    seen = torch.unique(y_L)
    report = FitReport(
        rows=len(y_L),
        classes_seen=len(seen),
        constant=int(seen[0]) if len(seen) == 1 else None,
        steps=step,
        converged=None,
        loss=float(loss_M.detach().mean()),
        gradient=float("nan"),
        validation_rows=len(y_V),
    )
    return (members if best is None else best.members()), report


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


def _forward(
    members: Members,
    x_MBd: torch.Tensor,
    config: NetworkConfig,
    dropping: Sequence[torch.Generator],
) -> torch.Tensor:
    """Return logits (M, C, B) in training mode."""
    hidden_MhB = members.hidden(x_MBd, training=True)
    if config.dropout:
        keep = torch.stack(
            [torch.rand(hidden_MhB.shape[1:], generator=one, device=one.device) for one in dropping]
        )
        hidden_MhB = hidden_MhB * (keep >= config.dropout) / (1.0 - config.dropout)
    return members.last(hidden_MhB)


def _three(
    members: Members,
    x_MBd: torch.Tensor,
    weak_Mud: torch.Tensor,
    strong_Mud: torch.Tensor | None,
    config: NetworkConfig,
    dropping: Sequence[torch.Generator],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits of the labelled rows, of the weak views, and of what learns from them."""
    rows, size = x_MBd.shape[1], weak_Mud.shape[1]
    if strong_Mud is None:
        z = _forward(members, torch.cat([x_MBd, weak_Mud], dim=1), config, dropping)
        return z[:, :, :rows], z[:, :, rows:], z[:, :, rows:]
    if config.batch_norm:
        # Normalised together, as in the published implementations.
        together = torch.cat([x_MBd, weak_Mud, strong_Mud], dim=1)
        z = _forward(members, together, config, dropping)
        return z[:, :, :rows], z[:, :, rows : rows + size], z[:, :, rows + size :]
    with torch.no_grad():
        weak_MCu = _forward(members, weak_Mud, config, dropping)
    z = _forward(members, torch.cat([x_MBd, strong_Mud], dim=1), config, dropping)
    return z[:, :, :rows], weak_MCu, z[:, :, rows:]


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
