"""The losses of one step and their gradients, for supervised training and for every method.

A step is computed in parts (`accumulate`), and of several processes each takes its share of it.
Every loss is divided by counts of the whole step, so gradients of parts and processes add up to
those of the step in one piece.

Shapes: B = labelled images of a part of a step, M = unlabelled ones, A = all of them, U =
unlabelled images of the pool, S = side in pixels, C = classes.
"""

import dataclasses

import torch
from torch.nn import functional

from svp.finetune.averaging import WeightAverage
from svp.finetune.batchnorm import batch_norms, statistics_kept
from svp.finetune.config import FinetuneConfig
from svp.finetune.mixmatch import MixMatch, mix, squared_error_sum
from svp.finetune.model import Classifier, Normalisation, autocast
from svp.finetune.parallel import Group, part_of
from svp.finetune.views import StepViews
from svp.pseudolabels.rule import Rule, Targets
from svp.seed import derive_seed


class Losses:
    """What a step learns from."""

    def __init__(
        self,
        classifier: Classifier,
        average: WeightAverage | None,
        method: Rule | MixMatch | None,
        normalisation: Normalisation,
        truth_U: torch.Tensor,
        config: FinetuneConfig,
        *,
        group: Group,
    ) -> None:
        """Prepare.

        Args:
            classifier: The network in training.
            average: Its averaged weights; the teacher `average` needs them.
            method: None for supervised training. Its state moves with every step.
            normalisation: From images in [0, 1] to what the classifier takes.
            truth_U: True classes or -1, only compared with pseudo-labels.
            config: The settings.
            group: The processes that train together.
        """
        self._classifier, self._average, self._method = classifier, average, method
        self._normalisation, self._truth_U = normalisation, truth_U
        self._config, self._group = config, group
        self._count = config.uratio * config.batch_size
        # Only layers that mix the images of a batch make it matter who shares a forward pass.
        self._mixes = config.bn_mode == "train" and bool(batch_norms(classifier))
        self._done, self._seed = 0.0, 0

    def add_gradients(self, views: StepViews, *, done: float, seed: int) -> torch.Tensor:
        """Add the gradients of this process' share of a step.

        Args:
            views: Of the step.
            done: Share of the steps with unlabelled images that is over.
            seed: Decides what mixing draws.

        Returns:
            float64 (5,), this process' share of: labelled loss, unlabelled loss, mean weight of
            pseudo-labels, and the sums of weights of those that are right and that are known.
        """
        parts = self._config.accumulate
        self._done, self._seed = done, seed
        sums_5 = torch.zeros(5, dtype=torch.float64, device=views.x_B3SS.device)
        targets: Targets | None = None
        if views.weak_M3SS is None:
            work = self._supervised
        elif isinstance(self._method, MixMatch):
            work = self._mixed
        elif not self._rule.uses_strong:
            work = self._own_labels
        elif parts == 1 and self._mixes and self._config.teacher == "student":
            work = self._all_views_at_once
        else:
            # Labels first, from the weak views alone, so that all parts see one state.
            weak = [self._look(x) for x in views.weak_M3SS.tensor_split(parts)]
            targets = self._targets(torch.cat(weak), views)
            work = self._labels_given
        for part in range(parts):
            piece = _piece(views, targets, part, parts)
            loss, reported_5 = work(part, *piece)
            loss.backward()  # type: ignore[no-untyped-call]
            sums_5 += reported_5
        return sums_5

    def _supervised(
        self, part: int, views: StepViews, targets: Targets | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        del targets
        x_B3SS, target_B = views.x_B3SS, views.y_B
        if self._config.mixup:
            one_hot_BC = functional.one_hot(views.y_B, self._classifier.head.out_features).float()
            seed = derive_seed(self._seed, part)
            x_B3SS, target_B = mix(x_B3SS, one_hot_BC, alpha=self._config.mixup, seed=seed)
        loss = self._labelled_loss(self._logits(x_B3SS), target_B)
        return loss, self._reported(loss)

    def _all_views_at_once(
        self, part: int, views: StepViews, targets: Targets | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        del part, targets
        x = [views.x_B3SS, _given(views.weak_M3SS), _given(views.other_M3SS)]
        labelled_BC, weak_MC, strong_MC = torch.split(
            self._logits(torch.cat(x)), [len(one) for one in x]
        )
        return self._consistency(views, labelled_BC, strong_MC, self._targets(weak_MC, views))

    def _labels_given(
        self, part: int, views: StepViews, targets: Targets | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        del part
        assert targets is not None
        strong_M3SS = _given(views.other_M3SS)
        logits = self._logits(torch.cat([views.x_B3SS, strong_M3SS]))
        labelled_BC, strong_MC = torch.split(logits, [len(views.x_B3SS), len(strong_M3SS)])
        return self._consistency(views, labelled_BC, strong_MC, targets)

    def _own_labels(
        self, part: int, views: StepViews, targets: Targets | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        del part
        weak_M3SS = _given(views.weak_M3SS)
        if self._mixes:
            labelled_BC = self._logits(views.x_B3SS)
            with statistics_kept(self._classifier):
                weak_MC = self._logits(weak_M3SS)
        else:
            logits = self._logits(torch.cat([views.x_B3SS, weak_M3SS]))
            labelled_BC, weak_MC = torch.split(logits, [len(views.x_B3SS), len(weak_M3SS)])
        labels_MC = weak_MC if self._config.teacher == "student" else self._look(weak_M3SS)
        targets = self._rule.targets(labels_MC, _given(views.rows_M))
        return self._consistency(views, labelled_BC, weak_MC, targets)

    def _mixed(
        self, part: int, views: StepViews, targets: Targets | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        method = self._method
        assert isinstance(method, MixMatch)
        config, count = self._config, len(views.x_B3SS)
        first_M3SS, second_M3SS = _given(views.weak_M3SS), _given(views.other_M3SS)
        targets = method.guess(self._look(first_M3SS), self._look(second_M3SS))
        one_hot_BC = functional.one_hot(views.y_B, self._classifier.head.out_features).float()
        guess_MC = _given(targets.probs_MC)
        x_A3SS, target_AC = mix(
            torch.cat([views.x_B3SS, first_M3SS, second_M3SS]),
            torch.cat([one_hot_BC, guess_MC, guess_MC]),
            alpha=config.mixup,
            seed=derive_seed(self._seed, part),
        )
        logits_AC = self._logits(x_A3SS)
        labelled = self._labelled_loss(logits_AC[:count], target_AC[:count])
        # Both views of an image take part.
        unlabelled = squared_error_sum(logits_AC[count:], target_AC[count:]) / (2 * self._count)
        loss = labelled + config.lambda_u * method.weight(self._done) * unlabelled
        return loss, self._reported(labelled, unlabelled, targets, _given(views.rows_M))

    def _consistency(
        self,
        views: StepViews,
        labelled_BC: torch.Tensor,
        other_MC: torch.Tensor,
        targets: Targets,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of a part from its logits, and what is reported of it."""
        config, rule = self._config, self._rule
        weight_B = rule.labelled_weights(labelled_BC, views.y_B, self._done)
        labelled = self._labelled_loss(labelled_BC, views.y_B, weight_B)
        unlabelled = targets.loss_sum(other_MC) / self._count
        if config.unlabelled_mean == "counted":
            counted = self._group.sum(targets.weight_M.sum())
            unlabelled = targets.loss_sum(other_MC) / counted.clamp(min=1e-12) / config.accumulate
        loss = labelled + config.lambda_u * rule.weight(self._done) * unlabelled
        extra = rule.regulariser(other_MC, targets, self._group.sum)
        if extra is not None:
            loss = loss + extra / config.accumulate
        return loss, self._reported(labelled, unlabelled, targets, _given(views.rows_M))

    def _targets(self, weak_MC: torch.Tensor, views: StepViews) -> Targets:
        """Return this process' targets; the state sees the weak views of all processes."""
        every_MC = self._group.gather(weak_MC.detach(), self._count)
        every = self._rule.targets(every_MC, _given(views.every_row))
        return _targets_of(every, self._group.share(self._count))

    @property
    def _rule(self) -> Rule:
        assert isinstance(self._method, Rule)
        return self._method

    def _logits(self, x_B3SS: torch.Tensor) -> torch.Tensor:
        with autocast(x_B3SS.device, self._config.precision):
            logits_BC: torch.Tensor = self._classifier(self._normalisation(x_B3SS))
        return logits_BC

    @torch.no_grad()
    def _look(self, x_M3SS: torch.Tensor) -> torch.Tensor:
        """Return the teacher's logits of weak views."""
        if self._config.teacher == "student":
            with statistics_kept(self._classifier):
                return self._logits(x_M3SS)
        assert self._average is not None
        with autocast(x_M3SS.device, self._config.precision):
            logits_MC: torch.Tensor = self._average.module(self._normalisation(x_M3SS))
        return logits_MC

    def _labelled_loss(
        self,
        logits_BC: torch.Tensor,
        target_B: torch.Tensor,
        weight_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the share of this part in the mean over the labelled images of the step."""
        loss_B = functional.cross_entropy(
            logits_BC.float(),
            target_B,
            label_smoothing=self._config.label_smoothing,
            reduction="none",
        )
        share = len(loss_B) / self._config.batch_size
        if weight_B is None:
            return loss_B.mean() * share
        return (weight_B * loss_B).sum() / weight_B.sum().clamp(min=1) * share

    def _reported(
        self,
        labelled: torch.Tensor,
        unlabelled: torch.Tensor | None = None,
        targets: Targets | None = None,
        rows_M: torch.Tensor | None = None,
    ) -> torch.Tensor:
        sums_5 = torch.zeros(5, dtype=torch.float64, device=labelled.device)
        if unlabelled is None or targets is None or rows_M is None:
            sums_5[0] = labelled.detach()
            return sums_5
        truth_M = self._truth_U[rows_M]
        known_M = targets.weight_M * (truth_M >= 0)
        return torch.stack(
            [
                labelled.detach(),
                unlabelled.detach(),
                targets.weight_M.sum() / self._count,
                (known_M * (truth_M == targets.label_M)).sum(),
                known_M.sum(),
            ]
        ).double()


def _given(x: torch.Tensor | None) -> torch.Tensor:
    assert x is not None
    return x


def _piece(
    views: StepViews, targets: Targets | None, part: int, parts: int
) -> tuple[StepViews, Targets | None]:
    """Return one part of a step's images and of their targets."""
    if parts == 1:
        return views, targets
    labelled = part_of(len(views.x_B3SS), part, parts)
    x_B3SS, y_B = views.x_B3SS[labelled], views.y_B[labelled]
    if views.weak_M3SS is None or views.rows_M is None:
        return dataclasses.replace(views, x_B3SS=x_B3SS, y_B=y_B), targets
    rows = part_of(len(views.rows_M), part, parts)
    other_M3SS = None if views.other_M3SS is None else views.other_M3SS[rows]
    piece = dataclasses.replace(
        views,
        x_B3SS=x_B3SS,
        y_B=y_B,
        weak_M3SS=views.weak_M3SS[rows],
        other_M3SS=other_M3SS,
        rows_M=views.rows_M[rows],
    )
    return piece, None if targets is None else _targets_of(targets, rows)


def _targets_of(targets: Targets, rows: slice) -> Targets:
    probs_MC = None if targets.probs_MC is None else targets.probs_MC[rows]
    return Targets(
        label_M=targets.label_M[rows], weight_M=targets.weight_M[rows], probs_MC=probs_MC
    )
