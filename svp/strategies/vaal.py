"""VAAL: images that a discriminator can tell from the labelled ones.

A variational autoencoder is trained on labelled and unlabelled rows, and tries to make a
discriminator on its latent means take all of them for labelled; the discriminator tries to tell
them apart. What it still finds least like a labelled row is asked. No label and no prediction is
looked at.

Source: Sinha, Ebrahimi and Darrell 2019, "Variational adversarial active learning", equations 1
to 4 and algorithm 1.
Shapes: B = rows of a batch, d = features, z = latent width.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np
import torch

from svp.errors import InputError
from svp.seed import numpy_generator
from svp.strategies.auxiliary import (
    Dense,
    Standard,
    adam,
    batches,
    dense_bytes,
    dense_flops,
    rank_blocks,
    sample,
)
from svp.strategies.base import Budget, Need, Oracle, PoolView, Selection
from svp.strategies.cost import Cost, PoolShape
from svp.strategies.parameters import check_choice, check_range


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Vaal:
    """Least like a labelled image in the latent space of an autoencoder of the embeddings.

    The original encodes pixels with a convolutional network; here embeddings are frozen and
    encoder, decoder and discriminator are dense, so results are not comparable to the paper's.

    Attributes:
        steps: Discriminator steps.
        vae_steps: Autoencoder steps per discriminator step; 2 originally, 1 in BASE (2022).
        batch: Rows of labelled and of unlabelled per step.
        latent: Latent width z.
        width: Hidden units of encoder, decoder and discriminator.
        adversarial: Weight of fooling the discriminator; 1, or 10 for ImageNet.
        beta: Weight of the Kullback-Leibler term.
        kl: `elbo` takes it and the reconstruction per feature, as the evidence bound has them;
            `published` sums it over the batch beside a mean reconstruction, so that it dominates.
        lr: Of Adam.
        sample: Most candidates, and most labelled rows, to train on.
    """

    name: ClassVar[str] = "vaal"
    family: ClassVar[str] = "auxiliary"
    summary: ClassVar[str] = "images that look least like those already labelled"
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "labelled"})
    stochastic: ClassVar[bool] = True
    uses_oracle: ClassVar[bool] = False
    exactness: ClassVar[str] = "approx:stochastic"
    source: ClassVar[str] = "Sinha, Ebrahimi and Darrell 2019, algorithm 1"
    scaling: ClassVar[str] = "(N + steps batch) d width"
    instead: ClassVar[str] = "coreset"

    steps: int = 100
    vae_steps: int = 2
    batch: int = 64
    latent: int = 32
    width: int = 512
    adversarial: float = 1.0
    beta: float = 1.0
    kl: Literal["elbo", "published"] = "elbo"
    lr: float = 5e-4
    sample: int = 20_000

    def __post_init__(self) -> None:
        check_choice("vaal.kl", self.kl, ("elbo", "published"))
        check_range("vaal.steps", self.steps, 0)
        for name in ("vae_steps", "batch", "latent", "width", "sample"):
            check_range(f"vaal.{name}", getattr(self, name), 1)
        for name in ("adversarial", "beta"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise InputError(
                    f"vaal.{name} must be at least 0. Got {getattr(self, name)}. Use 1."
                )

    def cost(self, shape: PoolShape) -> Cost:
        """Return memory and arithmetic; see `Strategy.cost`."""
        d, w, z = shape.dim, self.width, self.latent
        encode, decode, judge = (d, w, 2 * z), (z, w, d), (z, w, w, 1)
        held = min(self.sample, shape.candidates) + min(self.sample, shape.labelled)
        step = 6.0 * self.batch * sum(dense_flops(*net) for net in (encode, decode, judge))
        return Cost(
            bytes=shape.tile_bytes
            + 48 * shape.candidates
            + 24 * held * d
            + 2 * sum(dense_bytes(*net) for net in (encode, decode, judge))
            + 32 * (self.batch + 1024) * (2 * d + 4 * w + 4 * z),
            flops=self.steps * (self.vae_steps + 0.5) * step
            + shape.candidates * (dense_flops(*encode) + dense_flops(*judge)),
            passes=2.0,
        )

    def select(
        self, view: PoolView, b: int, seed: int, *, budget: Budget, oracle: Oracle | None = None
    ) -> Selection:
        """Choose the `b` candidates least like a labelled row; see `Strategy.select`."""
        del oracle
        rows_U = view.candidates(seed)
        game = Game(self, view, seed, budget)
        game.train()
        places_b, utility_b = rank_blocks(
            view.space_tiles(rows_U, budget, "input"), b, lambda x_Td: -game.judge(x_Td)
        )
        return Selection(
            rows_b=rows_U[places_b],
            utility_b=utility_b,
            reason="Unlike the labelled images, to a network that tells them apart ({utility}).",
            exactness=self.exactness,
            counters={"steps": self.steps},
        )


class Game:
    """Autoencoder and discriminator.

    Args:
        strategy: Its parameters.
        view: The pool.
        seed: Of weights, batches and noise.
        budget: Device and tile size.
    """

    def __init__(self, strategy: Vaal, view: PoolView, seed: int, budget: Budget) -> None:
        self._strategy = strategy
        x_U = sample(view, view.candidates(seed), budget, "input", strategy.sample)
        x_L = sample(view, view.centres(seed), budget, "input", strategy.sample)
        self._standard = Standard(x_U)
        self._x_U, self._x_L = self._standard(x_U), self._standard(x_L)
        self._generator = numpy_generator(seed, "vaal")
        d, w, z, device = x_U.shape[1], strategy.width, strategy.latent, x_U.device
        self._encoder = Dense((d, w, 2 * z), self._generator, device)
        self._decoder = Dense((z, w, d), self._generator, device)
        # Flat at first, so that without training all candidates are equal.
        self._critic = Dense((z, w, w, 1), self._generator, device, flat=True)

    def judge(self, x_Bd: torch.Tensor) -> torch.Tensor:
        """Return the discriminator's logit that rows are labelled, (B,)."""
        mean_Bz = self._encoder(self._standard(x_Bd))[:, : self._strategy.latent]
        return self._critic(mean_Bz)[:, 0]

    def train(self) -> None:
        """Play all steps."""
        strategy, device = self._strategy, self._x_U.device
        weights = [*self._encoder.parameters, *self._decoder.parameters]
        vae = adam(weights, strategy.lr)
        critic = adam(self._critic.parameters, strategy.lr)
        rounds = strategy.steps * (strategy.vae_steps + 1)
        draws_L = batches(self._generator, len(self._x_L), strategy.batch, rounds, device)
        draws_U = batches(self._generator, len(self._x_U), strategy.batch, rounds, device)
        with torch.enable_grad():
            for turn, (index_L, index_U) in enumerate(zip(draws_L, draws_U, strict=True)):
                x_Bd = torch.cat([self._x_L[index_L], self._x_U[index_U]])
                if turn % (strategy.vae_steps + 1) < strategy.vae_steps:
                    vae.zero_grad()
                    # Without the discriminator's own gradients, which nobody uses here.
                    self._vae_loss(x_Bd).backward(inputs=weights)  # type: ignore[no-untyped-call]
                    vae.step()
                else:
                    critic.zero_grad()
                    self._critic_loss(x_Bd).backward()  # type: ignore[no-untyped-call]
                    critic.step()

    def _vae_loss(self, x_Bd: torch.Tensor) -> torch.Tensor:
        strategy = self._strategy
        mean_Bz, log_var_Bz = self._encoder(x_Bd).chunk(2, dim=1)
        noise = self._generator.standard_normal(size=tuple(mean_Bz.shape)).astype(np.float32)
        latent_Bz = mean_Bz + torch.exp(0.5 * log_var_Bz) * torch.from_numpy(noise).to(x_Bd.device)
        error = (self._decoder(latent_Bz) - x_Bd).square().mean()
        kl = -0.5 * (1.0 + log_var_Bz - mean_Bz.square() - log_var_Bz.exp()).sum()
        if strategy.kl == "elbo":
            kl = kl / x_Bd.numel()
        # The discriminator should take every row for labelled.
        fooled = torch.nn.functional.softplus(-self._critic(mean_Bz)).mean()
        return error + strategy.beta * kl + 2.0 * strategy.adversarial * fooled

    def _critic_loss(self, x_Bd: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            mean_Bz = self._encoder(x_Bd)[:, : self._strategy.latent]
        logit_B = self._critic(mean_Bz)[:, 0]
        half = self._strategy.batch
        softplus = torch.nn.functional.softplus
        return softplus(-logit_B[:half]).mean() + softplus(logit_B[half:]).mean()
