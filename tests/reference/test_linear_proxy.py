"""The linear proxy against scikit-learn's optimum."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from svp.errors import InputError
from svp.proxies import LinearConfig, LinearProxy, Proxy, Standardiser, fit_proxy, load_proxy


def _task(n: int, d: int, c: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clumps with correlated dimensions of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    y_n = torch.arange(n) % c
    mixing = torch.randn(d, d, generator=generator) * torch.logspace(-1, 1, d)
    x_nd = torch.randn(c, d, generator=generator)[y_n] + torch.randn(n, d, generator=generator)
    return x_nd @ mixing + 5.0, y_n


def _fit(
    x: torch.Tensor,
    y: torch.Tensor,
    c: int,
    config: LinearConfig,
    scale: Standardiser | None = None,
) -> Proxy:
    scale = scale if scale is not None else Standardiser.fit(x)
    return fit_proxy(x, y, c, config, standardiser=scale, seed=0)


@pytest.mark.parametrize("l2", [1e-2, 0.1, 1.0])
@pytest.mark.parametrize(("n", "d", "c"), [(60, 30, 3), (600, 20, 7), (40, 100, 4)])
def test_it_reaches_scikit_learns_optimum(n: int, d: int, c: int, l2: float) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = _task(n, d, c)
    scale = Standardiser.fit(x)
    proxy = _fit(x, y, c, LinearConfig(l2=l2, tolerance=1e-6), scale)
    reference = LogisticRegression(C=1 / (l2 * n), tol=1e-10, max_iter=20_000)
    reference.fit(scale(x).double().numpy(), y.numpy())
    assert proxy.report.converged
    # Strong convexity: the distance to the optimum is at most the gradient norm over l2.
    error = 2e-4 * np.abs(reference.coef_).max()
    np.testing.assert_allclose(proxy.head.weight_Cd.numpy(), reference.coef_, atol=error, rtol=0)
    bias = proxy.head.bias_C - proxy.head.bias_C.mean()
    np.testing.assert_allclose(
        bias.numpy(), reference.intercept_ - reference.intercept_.mean(), atol=2e-3
    )
    np.testing.assert_allclose(
        proxy.predict_proba(x).numpy(),
        reference.predict_proba(scale(x).double().numpy()),
        atol=1e-3,
    )


@pytest.mark.parametrize("l2", [1e-5, 1e-2, 10.0])
def test_the_default_tolerance_predicts_like_the_optimum(l2: float) -> None:
    x, y = _task(500, 40, 6)
    loose = _fit(x, y, 6, LinearConfig(l2=l2))
    tight = _fit(x, y, 6, LinearConfig(l2=l2, tolerance=1e-6, max_iterations=5000))
    assert loose.report.converged
    assert (loose.predict_proba(x) - tight.predict_proba(x)).abs().max() < 0.01


def test_classes_without_labels_get_probability_zero_and_change_nothing_else() -> None:
    x, y = _task(120, 12, 3)
    few = _fit(x, y, 3, LinearConfig())
    many = _fit(x, torch.tensor([0, 2, 5])[y], 7, LinearConfig())
    p = many.predict_proba(x)
    torch.testing.assert_close(p[:, [0, 2, 5]], few.predict_proba(x))
    assert torch.all(p[:, [1, 3, 4, 6]] == 0)
    assert torch.isfinite(many.logits(x)).all()
    assert many.report.classes_seen == 3


def test_one_class_is_said_to_be_constant() -> None:
    x, _ = _task(10, 6, 2)
    proxy = _fit(x, torch.full((10,), 1), 3, LinearConfig())
    assert proxy.report.constant == 1
    assert proxy.predict_proba(x).tolist() == [[0.0, 1.0, 0.0]] * 10


def test_a_single_row_of_each_class_works() -> None:
    x, y = _task(3, 50, 3)
    proxy = _fit(x, y, 3, LinearConfig())
    assert proxy.report.converged
    assert proxy.logits(x).argmax(dim=1).tolist() == y.tolist()


def test_it_says_when_it_did_not_converge() -> None:
    x, y = _task(200, 20, 4)
    report = _fit(x, y, 4, LinearConfig(l2=1e-6, max_iterations=2)).report
    assert not report.converged
    assert report.steps == 2


def test_no_step_raises_the_objective() -> None:
    x, y = _task(300, 20, 5)
    losses = [
        _fit(x, y, 5, LinearConfig(l2=1e-3, tolerance=1e-9, max_iterations=most)).report.loss
        for most in range(1, 25, 4)
    ]
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(losses))


def test_float16_embeddings_fit_like_their_values() -> None:
    x, y = _task(100, 16, 3)
    half = (x / 8).half()
    scale = Standardiser.fit(half)
    one = _fit(half, y, 3, LinearConfig(), scale)
    two = _fit(half.float(), y, 3, LinearConfig(), scale)
    assert torch.equal(one.head.weight_Cd, two.head.weight_Cd)
    assert torch.equal(one.logits(half), two.logits(half.float()))


@pytest.mark.parametrize("c", [2, 40])
def test_logits_are_the_head_on_the_hidden_representation(c: int) -> None:
    x, y = _task(200, 16, c)
    proxy = _fit(x, y, c, LinearConfig())
    head = torch.nn.functional.linear(proxy.hidden(x), proxy.head.weight_Cd, proxy.head.bias_C)
    torch.testing.assert_close(head, proxy.logits(x), rtol=1e-4, atol=1e-4)


def test_a_saved_proxy_is_the_same(tmp_path: Path) -> None:
    x, y = _task(100, 16, 3)
    proxy = _fit(x, y, 4, LinearConfig(l2=0.02))
    proxy.save(tmp_path / "one.safetensors")
    loaded = load_proxy(tmp_path / "one.safetensors")
    loaded.save(tmp_path / "two.safetensors")
    assert isinstance(loaded, LinearProxy)
    assert loaded.config == LinearConfig(l2=0.02)
    assert loaded.report == proxy.report
    assert torch.equal(loaded.logits(x), proxy.logits(x))
    assert torch.equal(loaded.hidden(x), proxy.hidden(x))
    one, two = ((tmp_path / name).read_bytes() for name in ("one.safetensors", "two.safetensors"))
    assert one == two


def test_other_files_are_not_proxies(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(InputError, match="proxy file must be readable"):
        load_proxy(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match="proxy file must be readable"):
        load_proxy(path)


def test_bad_settings_and_data_are_refused() -> None:
    x, y = _task(10, 4, 2)
    for settings in ({"l2": 0.0}, {"tolerance": 0.0}, {"max_iterations": 0}):
        with pytest.raises(InputError, match="must be"):
            LinearConfig(**settings)  # type: ignore[arg-type]
    scale = Standardiser.fit(x)
    for rows, labels, match in (
        (x[:0], y[:0], "at least one labelled row"),
        (x, y + 1, "Classes must be in"),
        (x[:, :3], y, "standardiser's 4 dimensions"),
    ):
        with pytest.raises(InputError, match=match):
            fit_proxy(rows, labels, 2, LinearConfig(), standardiser=scale, seed=0)


def test_the_standardiser_gives_mean_zero_and_deviation_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 9, generator=generator) * torch.logspace(-1, 3, 9) + 100.0
    x[:, 4] = 0.1
    scale = Standardiser.fit(x)
    z = scale(x)
    assert z[:, 4].abs().max() < 1e-6
    assert scale.std_d[4] == 1.0
    rest = [0, 1, 2, 3, 5, 6, 7, 8]
    assert z[:, rest].double().mean(dim=0).abs().max() < 1e-4
    torch.testing.assert_close(
        x.double().std(dim=0, correction=0)[rest].float(), scale.std_d[rest], rtol=1e-4, atol=0
    )
    one_row = Standardiser.fit(x[:1])
    assert torch.all(one_row.std_d == 1)
    for broken in (x[:0], torch.tensor([[1.0, torch.nan]])):
        with pytest.raises(InputError):
            Standardiser.fit(broken)


def test_a_warm_start_reaches_the_same_optimum_sooner() -> None:
    x, y = _task(400, 20, 5)
    config = LinearConfig(l2=1e-2, tolerance=1e-5)
    # The last round: fewer labels, other numbers for its classes, one class unknown, another pool.
    old_number = torch.tensor([3, 0, 4, 1, -1])
    few = torch.arange(380)[old_number[y[:380]] >= 0]
    last = _fit(x[few], old_number[y[few]], 5, config, Standardiser.fit(x[:300]))
    assert isinstance(last, LinearProxy)
    scale = Standardiser.fit(x)
    cold = _fit(x, y, 5, config, scale)
    warm = fit_proxy(
        x, y, 5, config, standardiser=scale, seed=0, start=last, start_classes=[1, 3, -1, 0, 2]
    )
    assert warm.report.converged
    assert (warm.predict_proba(x) - cold.predict_proba(x)).abs().max() < 1e-3
    again = fit_proxy(
        x, y, 5, config, standardiser=scale, seed=0, start=cold, start_classes=range(5)
    )
    assert again.report.steps <= 1
    assert cold.report.steps > 5
    with pytest.raises(InputError, match="start must be"):
        fit_proxy(x, y, 5, config, standardiser=scale, seed=0, start=last, start_classes=[0, 1])


def test_a_useless_start_is_not_used() -> None:
    x, y = _task(200, 10, 3)
    config = LinearConfig()
    cold = _fit(x, y, 3, config)
    cold.head.weight_Cd.mul_(-1e3)
    warm = fit_proxy(x, y, 3, config, standardiser=Standardiser.fit(x), seed=0, start=cold)
    assert warm.report.converged
    assert torch.equal(warm.logits(x), _fit(x, y, 3, config).logits(x))


def test_automatic_regularisation_is_the_best_of_scikit_learns_cross_validation() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    from svp.proxies.regularisation import FOLDS, LADDER, folds

    x, y = _task(150, 25, 3)
    y[::4] = (y[::4] + 1) % 3  # wrong labels, so that too weak a penalty costs something
    proxy = _fit(x, y, 3, LinearConfig(l2="auto"))
    assert proxy.report.l2 in LADDER
    z = Standardiser.fit(x)(x).double().numpy()
    fold = folds(y, FOLDS).numpy()
    losses = {}
    for l2 in LADDER[:6]:
        total = 0.0
        for number in range(FOLDS):
            train, held = fold != number, fold == number
            model = LogisticRegression(C=1 / (l2 * len(y)), tol=1e-6, max_iter=5000)
            model.fit(z[train], y.numpy()[train])
            total += log_loss(
                y.numpy()[held], model.predict_proba(z[held]), normalize=False, labels=[0, 1, 2]
            )
        losses[l2] = total
    assert losses[proxy.report.l2] <= 1.002 * min(losses.values())
    same = _fit(x, y, 3, LinearConfig(l2=proxy.report.l2))
    assert torch.equal(same.logits(x), proxy.logits(x))


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2], [0, 0, 1], [0, 0, 0, 1, 1, 2]])
def test_automatic_regularisation_survives_very_few_labels(labels: list[int]) -> None:
    x, _ = _task(10, 8, 2)
    y = torch.tensor(labels)
    proxy = _fit(x[: len(y)], y, 3, LinearConfig(l2="auto"), Standardiser.fit(x))
    assert torch.isfinite(proxy.logits(x)).all()
    assert proxy.report.l2 is not None
    with pytest.raises(InputError, match="number or auto"):
        LinearConfig(l2="automatic")  # type: ignore[arg-type]
