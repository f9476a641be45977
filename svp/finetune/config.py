"""Settings of a fine-tune. The defaults are the "small" preset; see `svp.finetune.presets`."""

import dataclasses
from typing import Literal

from svp.errors import InputError

Mode = Literal["ft", "lp-ft", "lp"]
Method = Literal["supervised", "flexmatch"]
Schedule = Literal["cosine", "step", "restarts", "warmup-cosine", "constant"]


def _require(ok: bool, what: str, constraint: str, value: object) -> None:
    if not ok:
        raise InputError(
            f"{what} must be {constraint}. Got {value!r}. Correct it under [finetune]."
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """How the target model is trained.

    Attributes:
        mode: `ft` starts from a fresh head; `lp-ft` solves a linear probe on the frozen backbone
            first and carries its head over (Kumar et al. 2022); `lp` stops after the probe.
        method: `supervised`, or `flexmatch`, which also learns from unlabelled images.
        steps: Optimiser steps. Exactly one of `steps` and `epochs` is set.
        epochs: Passes over the labelled images; one is ceil(labels / batch_size) steps.
        batch_size: Labelled images per step. Fewer labels than that are repeated, each time
            under another weak view.
        optimiser: `sgd` (momentum below, Nesterov) or `adamw`.
        head_lr: Base learning rate of the last layer.
        backbone_lr: Base learning rate of everything else.
        layer_decay: Factor on the learning rate per block away from the head; 1 = off. Needs a
            backbone with one list of blocks, such as a vision transformer.
        momentum: SGD momentum, in [0, 1).
        weight_decay: L2 for SGD, decoupled for AdamW.
        decay_norms: Whether biases and normalisation scales decay too.
        clip_norm: Largest gradient norm; None = no clipping.
        schedule: `cosine`: lr cos(7 pi/16 s/S), ending at 0.195; `step`: x0.1 at `milestones`;
            `restarts`: cosine to 0 over `restart_steps`, then twice as long, and so on;
            `warmup-cosine`: linear over `warmup_steps`, then cosine to 0; `constant`.
        milestones: For `step`: fractions of all steps, increasing, in (0, 1).
        warmup_steps: For `warmup-cosine`.
        restart_steps: For `restarts`: length of the first period.
        label_smoothing: On labelled images only, in [0, 1).
        ema: Decay of the averaged weights used for evaluation, in [0, 1); 0 = the last weights.
        ema_warmup: Use min(ema, (1 + s)/(10 + s)) at step s, so that short runs forget the start.
        bn_mode: `train` updates batch-norm statistics; `frozen` keeps the pretrained ones.
        precision: `bf16` runs the network under autocast; weights, thresholds and losses stay
            float32.
        flip: Mirror images at random. Off for digits, text and other chiral images.
        crop: Weak view: `pad` (reflect-pad and shift) or `resized` (a random box, resized).
        crop_padding: Weak view `pad`: padding as a fraction of the side.
        strong_ops: Strong view: RandAugment operations per image.
        cutout: Strong view: largest side of the square cut out, as a fraction of the side.
        uratio: FlexMatch: unlabelled images per labelled one in a step.
        teacher: FlexMatch: who makes pseudo-labels from the weak views. `student`, as published:
            the network in training, in one forward pass with the other images. `average`: the
            averaged weights in eval mode (Cai et al. 2021, "EMAN"), which is a third cheaper.
        cutoff: FlexMatch: tau, the largest threshold of confidence.
        lambda_u: FlexMatch: weight of the unlabelled loss.
        threshold_warmup: FlexMatch: count never-confident images as a class of their own when
            thresholds are scaled.
        threshold_floor: FlexMatch: smallest threshold; 0 as published.
        supervised_share: FlexMatch: share of all steps, at the start, without unlabelled images.
            While no image has been confident every threshold is 0 and every pseudo-label counts,
            so a random head should learn something first.
        include_labelled: FlexMatch: labelled images also take part as unlabelled ones.
        probe_l2: Probe: lambda of summed cross-entropy + lambda/2 ||W||^2, with features
            standardised. Against a sum one value suits 20 labels as well as 2,000.
        eval_batch_size: Images per forward pass when predicting.
    """

    mode: Mode = "ft"
    method: Method = "flexmatch"
    steps: int | None = 3000
    epochs: int | None = None
    batch_size: int = 64
    optimiser: Literal["sgd", "adamw"] = "sgd"
    head_lr: float = 0.1
    backbone_lr: float = 0.1
    layer_decay: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_norms: bool = False
    clip_norm: float | None = None
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = (0.6, 0.8)
    warmup_steps: int = 0
    restart_steps: int = 500
    label_smoothing: float = 0.0
    ema: float = 0.99
    ema_warmup: bool = True
    bn_mode: Literal["train", "frozen"] = "train"
    precision: Literal["fp32", "bf16"] = "fp32"
    flip: bool = True
    crop: Literal["pad", "resized"] = "pad"
    crop_padding: float = 0.125
    strong_ops: int = 3
    cutout: float = 0.5
    uratio: int = 3
    teacher: Literal["student", "average"] = "average"
    cutoff: float = 0.95
    lambda_u: float = 1.0
    threshold_warmup: bool = False
    threshold_floor: float = 0.0
    supervised_share: float = 0.4
    include_labelled: bool = False
    probe_l2: float = 10.0
    eval_batch_size: int = 512

    def __post_init__(self) -> None:
        for name, allowed in (
            ("mode", ("ft", "lp-ft", "lp")),
            ("method", ("supervised", "flexmatch")),
            ("optimiser", ("sgd", "adamw")),
            ("schedule", ("cosine", "step", "restarts", "warmup-cosine", "constant")),
            ("bn_mode", ("train", "frozen")),
            ("precision", ("fp32", "bf16")),
            ("crop", ("pad", "resized")),
            ("teacher", ("student", "average")),
        ):
            value = getattr(self, name)
            _require(value in allowed, name, f"one of {', '.join(allowed)}", value)
        _require(
            (self.steps is None) != (self.epochs is None),
            "steps or epochs",
            "set, and only one of them",
            (self.steps, self.epochs),
        )
        for name in ("steps", "epochs", "warmup_steps", "strong_ops"):
            value = getattr(self, name)
            _require(value is None or value >= 0, name, "0 or more", value)
        for name in ("batch_size", "uratio", "restart_steps", "eval_batch_size"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("head_lr", "backbone_lr", "weight_decay", "lambda_u"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in ("momentum", "label_smoothing", "ema", "threshold_floor", "supervised_share"):
            _require(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        for name in ("layer_decay", "cutoff"):
            _require(0 < getattr(self, name) <= 1, name, "in (0, 1]", getattr(self, name))
        for name in ("crop_padding", "cutout"):
            _require(0 <= getattr(self, name) <= 0.5, name, "in [0, 0.5]", getattr(self, name))
        _require(
            self.method != "flexmatch" or self.teacher == "student" or self.ema > 0,
            "ema",
            "above 0 for the teacher `average` (or take the teacher `student`)",
            self.ema,
        )
        _require(self.probe_l2 > 0, "probe_l2", "above 0", self.probe_l2)
        _require(
            self.clip_norm is None or self.clip_norm > 0, "clip_norm", "above 0", self.clip_norm
        )
        increasing = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        _require(
            increasing and all(0 < m < 1 for m in self.milestones),
            "milestones",
            "increasing fractions in (0, 1)",
            self.milestones,
        )

    def total_steps(self, num_labels: int) -> int:
        """Return S, the optimiser steps of a run on `num_labels` labelled images."""
        if self.mode == "lp":
            return 0
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * -(-num_labels // self.batch_size)
