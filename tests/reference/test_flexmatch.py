"""FlexMatch against its worked example, its invariants and a slow state that recounts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svp.pseudolabels.flexmatch import FlexMatch
from svp.pseudolabels.rule import Targets


def pseudo_labels(rule, logits, rows):
    targets = rule.targets(logits, rows)
    return targets.label_M, targets.weight_M


class SlowState:
    """Algorithm 1 of the paper, image by image, with full recounts."""

    def __init__(self, num_unlabelled, num_classes, *, cutoff, warmup):
        self.mark = [-1] * num_unlabelled
        self.num_classes, self.cutoff, self.warmup = num_classes, cutoff, warmup

    def thresholds(self):
        sigma = [self.mark.count(c) for c in range(self.num_classes)]
        unused = self.mark.count(-1)
        most = max(*sigma, unused) if self.warmup else max(sigma)
        beta = [s / most if most else 0.0 for s in sigma]
        return np.array([self.cutoff * b / (2 - b) for b in beta])

    def step(self, rows, probs):
        thresholds = self.thresholds()
        labels, mask = [], []
        for row_probs in probs:
            label = int(np.argmax(row_probs))
            labels.append(label)
            mask.append(float(row_probs[label] >= thresholds[label]))
        for row, label, row_probs in zip(rows, labels, probs, strict=True):
            if row_probs[label] >= self.cutoff:
                self.mark[row] = label
        return labels, mask


def marked(sigma, unused, *, warmup):
    total = sum(sigma) + unused
    state = FlexMatch(total, len(sigma), warmup=warmup)
    label = torch.tensor([c for c, count in enumerate(sigma) for _ in range(count)])
    state.update(torch.arange(len(label)), label, torch.ones(len(label)))
    return state


@pytest.mark.parametrize(
    ("warmup", "expected"), [(True, [0.6333, 0.1056]), (False, [0.95, 0.1357])]
)
def test_worked_example(warmup, expected):
    state = marked((4, 1), 5, warmup=warmup)
    assert state.counts_C1.tolist() == [4, 1, 5]
    torch.testing.assert_close(state.thresholds(), torch.tensor(expected), rtol=0, atol=5e-5)


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("num_unlabelled", [3, 40])
def test_parity_with_recounting_over_a_recorded_sequence(warmup, num_unlabelled):
    rng = np.random.default_rng(7)
    fast = FlexMatch(num_unlabelled, 5, cutoff=0.6, warmup=warmup)
    slow = SlowState(num_unlabelled, 5, cutoff=0.6, warmup=warmup)
    for _ in range(120):
        rows = rng.integers(0, num_unlabelled, size=12)  # repeats within a batch included
        logits = torch.from_numpy(rng.normal(scale=3.0, size=(12, 5)).astype(np.float32))
        label, mask = pseudo_labels(fast, logits, torch.from_numpy(rows))
        slow_label, slow_mask = slow.step(rows, logits.softmax(1).numpy())
        assert label.tolist() == slow_label
        assert mask.tolist() == slow_mask
        assert fast.marks().tolist() == slow.mark
        np.testing.assert_allclose(fast.thresholds(), slow.thresholds(), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(2, 6), st.booleans(), st.integers(0, 2**31))
def test_invariants(num_unlabelled, num_classes, warmup, seed):
    rng = np.random.default_rng(seed)
    state = FlexMatch(num_unlabelled, num_classes, cutoff=0.8, warmup=warmup)
    ever_marked = np.zeros(num_unlabelled, dtype=bool)
    for _ in range(6):
        rows = torch.from_numpy(rng.integers(0, num_unlabelled, size=9))
        logits = torch.from_numpy(rng.normal(scale=4.0, size=(9, num_classes)).astype(np.float32))
        pseudo_labels(state, logits, rows)
        counts = state.counts_C1
        assert counts.sum() == num_unlabelled
        assert (counts >= 0).all()
        assert counts[:-1].tolist() == [int((state.marks() == c).sum()) for c in range(num_classes)]
        thresholds = state.thresholds()
        assert (thresholds <= 0.8 + 1e-6).all()
        at_most = (thresholds - 0.8).abs() < 1e-6
        most, unused = counts[:-1].max(), counts[-1]
        assert torch.equal(
            at_most, (counts[:-1] == most) & (most > 0) & ((most >= unused) | (not warmup))
        )
        now = (state.marks() >= 0).numpy()
        assert (now | ~ever_marked).all()  # a mark is never taken back
        ever_marked = now


def test_every_pseudo_label_counts_before_the_first_mark():
    state = FlexMatch(50, 4)
    _, mask = pseudo_labels(state, torch.zeros(20, 4), torch.arange(20))
    assert mask.mean() == 1


def test_the_floor_holds_back_the_first_pseudo_labels():
    state = FlexMatch(50, 4, floor=0.5)
    _, mask = pseudo_labels(state, torch.zeros(20, 4), torch.arange(20))
    assert mask.sum() == 0


def test_mask_uses_the_state_from_before_the_batch():
    state = FlexMatch(4, 2, warmup=False)
    sure, unsure = [9.0, 0.0], [0.1, 0.0]
    _, mask = pseudo_labels(state, torch.tensor([sure, unsure]), torch.tensor([0, 1]))
    assert mask.tolist() == [1, 1]  # class 0 is marked by this batch, and only the next one sees it
    _, mask = pseudo_labels(state, torch.tensor([sure, unsure]), torch.tensor([0, 1]))
    assert mask.tolist() == [1, 0]


def test_marking_uses_the_fixed_cutoff_and_not_the_flexible_threshold():
    state = FlexMatch(4, 2)
    pseudo_labels(state, torch.tensor([[2.0, 0.0]]), torch.tensor([0]))  # 0.88 < 0.95
    assert state.marks().tolist() == [-1, -1, -1, -1]


def mean_loss(logits, label, mask):
    return Targets(label_M=label, weight_M=mask).loss_sum(logits) / len(label)


def test_the_loss_divides_by_all_rows_whatever_the_mask():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.0, 0.0]])
    label = torch.tensor([0, 1, 0, 1])
    each = torch.nn.functional.cross_entropy(logits, label, reduction="none")
    one = mean_loss(logits, label, torch.tensor([1.0, 0.0, 0.0, 0.0]))
    two = mean_loss(logits, label, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(one, each[0] / 4)
    torch.testing.assert_close(two, (each[0] + each[1]) / 4)
    assert mean_loss(logits, label, torch.zeros(4)) == 0


def test_no_gradient_reaches_the_weak_views():
    weak = torch.zeros(3, 2, requires_grad=True)
    label, mask = pseudo_labels(FlexMatch(3, 2), weak, torch.arange(3))
    strong = torch.zeros(3, 2, requires_grad=True)
    mean_loss(strong, label, mask).backward()
    assert weak.grad is None
    assert strong.grad is not None


def test_state_survives_a_round_trip():
    state = marked((3, 2), 4, warmup=True)
    other = FlexMatch(9, 2)
    other.load_state_dict({k: v.clone() for k, v in state.state_dict().items()})
    assert torch.equal(other.marks(), state.marks())
    assert torch.equal(other.thresholds(), state.thresholds())
