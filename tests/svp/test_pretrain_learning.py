"""Pretraining must teach something: features of digits against those of random weights."""

import dataclasses

import pytest
import torch
from sklearn.datasets import load_digits

from svp.augment.byol import views_digits
from svp.pretrain.config import small_32
from svp.pretrain.monitor import feature_spread, features
from svp.pretrain.run import Run


def digits():
    data = load_digits()
    grey_N88 = torch.from_numpy(data.images).mul(255 / 16).to(torch.uint8)
    images = grey_N88[:, None].expand(-1, 3, -1, -1).contiguous()
    return images, torch.from_numpy(data.target)


def linear_probe(x_Nd, y_N, labelled=100):
    """Accuracy of ridge regression on a few labels, on everything else."""
    x_Nd = (x_Nd - x_Nd.mean(dim=0)) / (x_Nd.std(dim=0) + 1e-6)
    order = torch.randperm(len(y_N), generator=torch.Generator().manual_seed(0))
    train, test = order[:labelled], order[labelled:]
    target_L10 = torch.nn.functional.one_hot(y_N[train], 10).float() - 0.1
    gram_LL = x_Nd[train] @ x_Nd[train].T + 30 * torch.eye(labelled)
    weights_d10 = x_Nd[train].T @ torch.linalg.solve(gram_LL, target_L10)
    return ((x_Nd[test] @ weights_d10).argmax(dim=1) == y_N[test]).float().mean().item()


def gain(method, epochs, batch_size):
    """Return probe accuracies with random and with learned weights, and the final spread."""
    images, labels = digits()
    config = dataclasses.replace(
        small_32(method),
        image_size=8,
        epochs=epochs,
        batch_size=batch_size,
        momentum0=0.95,
        head_width=256,
        projection_dim=64,
        views=views_digits(),
    )
    run = Run(images, config, seed=0, device=torch.device("cpu"))

    def watched():
        return features(
            run.encoder(), images, mean=config.mean, std=config.std, device=torch.device("cpu")
        )

    before = linear_probe(watched(), labels)
    while run.step < run.total:
        run.train_step()
    x_Nd = watched()
    return before, linear_probe(x_Nd, labels), feature_spread(x_Nd)


def test_seconds_of_training_beat_random_weights():
    before, after, spread = gain("eman", epochs=3, batch_size=32)
    assert after > before + 0.03
    assert spread > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["eman", "byol", "simclr"])
def test_half_a_minute_of_training_beats_random_weights_clearly(method):
    before, after, spread = gain(method, epochs=20, batch_size=64)
    assert after > before + 0.08
    assert spread > 0.1
