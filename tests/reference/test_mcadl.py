"""MCADL against its formula written out over all cosines."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from linear_view import linear_view, normal

from svp.strategies.catalog import run_strategy
from svp.strategies.mcadl import Mcadl, blends, class_weights, concentration

Array = npt.NDArray[np.float64]


def _unsure(p: Array, form: str) -> float:
    ranked = np.sort(p)[::-1]
    count = 1
    while ranked[:count].sum() <= 0.5:
        count += 1
    if count == 1 and form == "guarded":
        return float(1 - ranked[0])
    chosen = ranked[:count]
    return float(1 - np.abs(chosen - chosen.mean()).mean())


@pytest.mark.parametrize("form", ["guarded", "published"])
@pytest.mark.parametrize("missing", [False, True])
def test_scores_equal_the_formula_over_all_cosines(form: str, missing: bool) -> None:
    x, weight = normal(1400, 7), normal(5, 7, seed=1)
    z = x @ weight.T
    y = z[:1100].argmax(dim=1).numpy()
    y[::7] = (y[::7] + 1) % 5
    if missing:
        y[y == 3] = 0
    view = dataclasses.replace(
        linear_view(x, weight, y_L=y), state={"accuracy": [0.1, 0.2, 0.3, 0.4, 0.5]}
    )
    chosen = run_strategy(Mcadl(uncertainty=form), view, 60, 0)  # type: ignore[arg-type]

    said = z.argmax(dim=1).numpy()
    right = said[:1100] == y
    accuracy = np.array([right[y == c].mean() if np.any(y == c) else 0.0 for c in range(5)])
    weights = class_weights(accuracy, np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
    alpha = beta = 0.9 * math.exp(-right.mean())
    unit = torch.nn.functional.normalize(x.double(), dim=1).numpy()
    cosine = unit[1100:] @ unit[:1100].T
    p = z.double().softmax(dim=1).numpy()
    scores = np.empty(300)
    for row in range(300):
        near = np.argsort(-cosine[row], kind="stable")[:5]
        votes = said[near]
        counts = np.bincount(votes, minlength=5)
        pseudo = next(vote for vote in votes if counts[vote] == counts.max())
        same = y == pseudo if np.any(y == pseudo) else np.ones(1100, dtype=bool)
        novelty = 0.5 * (1 - cosine[row, same].mean()) + 0.5 * (1 - cosine[row, same].max())
        model = beta * _unsure(p[1100 + row], form) + (1 - beta) * weights[pseudo]
        scores[row] = alpha * novelty + (1 - alpha) * model
    expected = 1100 + np.argsort(-scores, kind="stable")[:60]
    assert chosen.rows_b.tolist() == expected.tolist()
    np.testing.assert_allclose(chosen.utility_b, scores[expected - 1100], atol=1e-5)
    assert chosen.state["accuracy"] == pytest.approx(accuracy.tolist())


def test_blends_stay_in_their_range() -> None:
    assert blends(0.0) == (0.9, 0.9)
    assert blends(1.0)[0] == pytest.approx(0.9 / math.e)


def test_class_weights_turn_from_progress_to_need() -> None:
    improved = class_weights(np.array([0.2, 0.6, 0.4]), np.array([0.1, 0.3, 0.5]))
    assert improved.tolist() == pytest.approx([0.25, 0.75, 0.0])
    assert class_weights(np.array([0.2, 0.6]), np.array([0.2, 0.7])).tolist() == [0.5, 0.5]
    needy = class_weights(np.array([0.5, 1.0]), np.zeros(2))
    assert needy.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_a_certain_prediction_is_the_most_uncertain_one_as_published() -> None:
    z = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.9, 0.0]])
    published, guarded = concentration(z, "published"), concentration(z, "guarded")
    assert published[0] == 1.0
    assert guarded[0] == guarded.min()
    assert published[1:].tolist() == guarded[1:].tolist()
