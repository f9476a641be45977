"""Settings of a fine-tune. The defaults are the "small" preset; see `svp.finetune.presets`."""

import dataclasses
from typing import Final, Literal, get_args

from svp.errors import InputError

Mode = Literal["ft", "lp-ft", "lp"]
Method = Literal[
    "supervised",
    "flexmatch",
    "fixmatch",
    "freematch",
    "softmatch",
    "uda",
    "pseudolabel",
    "mixmatch",
]
METHODS: Final[tuple[str, ...]] = get_args(Method)
"""The names `method` knows: `supervised`, and those that also learn from unlabelled images."""
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
        method: `supervised`, or one that also learns from unlabelled images: `flexmatch`,
            `fixmatch`, `freematch`, `softmatch`, `uda`, `pseudolabel`, `mixmatch`. What is said
            of unlabelled images below holds for all of these unless some are named.
        head: What the last layer starts from in mode `ft`: `random`, or `zero-shot`, the class
            names as the encoder's own text tower reads them (CLIP and CoCa only).
        templates: Zero-shot: prompts with `{}` for the class; or the name of a set, `simple` (7)
            or `imagenet` (80).
        steps: Optimiser steps. Exactly one of `steps` and `epochs` is set.
        epochs: Passes over the labelled images; one is ceil(labels / batch_size) steps.
        batch_size: Labelled images per step. Fewer labels than that are repeated, each time
            under another weak view.
        accumulate: Parts a step is computed in, one after the other, to save memory. The result
            is that of one part, except that batch-norm layers in training, mixing, FreeMatch's
            fairness, signal annealing and means over `counted` then see one part at a time.
        checkpoint_blocks: Compute activations again on the way back instead of keeping them:
            about a third more time for much less memory. For networks of timm and open_clip
            without batch-norm layers in training.
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
        mixup: alpha of the Beta distribution by which images and their targets are mixed; 0 = off.
            Among labelled images, or for MixMatch among all.
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
        uratio: Unlabelled images per labelled one in a step.
        teacher: Who makes pseudo-labels from the weak views. `student`, as published: the network
            in training, in one forward pass with the other images. `average`: the averaged
            weights in eval mode (Cai et al. 2021, "EMAN"), which is a third cheaper.
        cutoff: tau: confidence from which a pseudo-label counts; FlexMatch: the largest threshold.
            FreeMatch and SoftMatch find their own.
        lambda_u: Weight of the unlabelled loss.
        unlabelled_mean: Whether the unlabelled loss is a mean over `all` unlabelled images of the
            step, as published, or over the `counted` ones, as in LabelBench's UDA and PseudoLabel
            (0 instead of its NaN where none counts).
        ramp_share: PseudoLabel and MixMatch: share of the steps with unlabelled images over
            which lambda_u grows from 0.
        threshold_warmup: FlexMatch: count never-confident images as a class of their own when
            thresholds are scaled.
        threshold_floor: FlexMatch: smallest threshold; 0 as published.
        statistics_ema: FreeMatch and SoftMatch: decay of the running statistics, in [0, 1).
        fairness: FreeMatch: weight of its fairness term.
        weight_sigmas: SoftMatch: n_sigma, how fast weights fall below the mean confidence.
        align: SoftMatch: weigh by predictions aligned to a uniform class distribution.
        align_labels: SoftMatch: take the pseudo-labels from aligned predictions too, as
            LabelBench does and the paper does not.
        temperature: UDA and MixMatch: T of the sharpened targets; 1 = as predicted, as in USB's
            UDA.
        signal_annealing: UDA: leave out labelled images predicted better than a bound that rises
            from 1/C to 1 along this curve (the paper's TSA).
        supervised_share: Share of all steps, at the start, without unlabelled images. Before
            FlexMatch has marked an image every threshold is 0 and every pseudo-label counts, so a
            random head should learn something first.
        include_labelled: Labelled images also take part as unlabelled ones.
        probe_l2: Probe: lambda of summed cross-entropy + lambda/2 ||W||^2, with features
            standardised. Against a sum one value suits 20 labels as well as 2,000.
        eval_batch_size: Images per forward pass when predicting.
    """

    mode: Mode = "ft"
    method: Method = "flexmatch"
    head: Literal["random", "zero-shot"] = "random"
    templates: tuple[str, ...] = ("a photo of a {}.",)
    steps: int | None = 3000
    epochs: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    checkpoint_blocks: bool = False
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
    mixup: float = 0.0
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
    unlabelled_mean: Literal["all", "counted"] = "all"
    ramp_share: float = 0.4
    threshold_warmup: bool = False
    threshold_floor: float = 0.0
    statistics_ema: float = 0.999
    fairness: float = 0.001
    weight_sigmas: float = 2.0
    align: bool = True
    align_labels: bool = False
    temperature: float = 0.4
    signal_annealing: Literal["none", "linear", "log", "exp"] = "none"
    supervised_share: float = 0.4
    include_labelled: bool = False
    probe_l2: float = 10.0
    eval_batch_size: int = 512

    def __post_init__(self) -> None:
        for name, allowed in (
            ("mode", ("ft", "lp-ft", "lp")),
            ("method", METHODS),
            ("head", ("random", "zero-shot")),
            ("optimiser", ("sgd", "adamw")),
            ("schedule", ("cosine", "step", "restarts", "warmup-cosine", "constant")),
            ("bn_mode", ("train", "frozen")),
            ("precision", ("fp32", "bf16")),
            ("crop", ("pad", "resized")),
            ("teacher", ("student", "average")),
            ("unlabelled_mean", ("all", "counted")),
            ("signal_annealing", ("none", "linear", "log", "exp")),
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
        for name in ("batch_size", "accumulate", "uratio", "restart_steps", "eval_batch_size"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("head_lr", "backbone_lr", "weight_decay", "mixup", "lambda_u", "fairness"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in (
            "momentum",
            "label_smoothing",
            "ema",
            "threshold_floor",
            "statistics_ema",
            "supervised_share",
        ):
            _require(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        for name in ("layer_decay", "cutoff"):
            _require(0 < getattr(self, name) <= 1, name, "in (0, 1]", getattr(self, name))
        for name in ("crop_padding", "cutout"):
            _require(0 <= getattr(self, name) <= 0.5, name, "in [0, 0.5]", getattr(self, name))
        _require(
            self.method == "supervised" or self.teacher == "student" or self.ema > 0,
            "ema",
            "above 0 for the teacher `average` (or take the teacher `student`)",
            self.ema,
        )
        for name in ("probe_l2", "temperature", "weight_sigmas"):
            _require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        _require(0 <= self.ramp_share <= 1, "ramp_share", "in [0, 1]", self.ramp_share)
        _require(
            self.method != "mixmatch" or self.mixup > 0, "mixup", "above 0 for MixMatch", self.mixup
        )
        _require(
            self.accumulate <= self.batch_size,
            "accumulate",
            f"at most batch_size, {self.batch_size}",
            self.accumulate,
        )
        _require(
            self.head == "random" or self.mode == "ft",
            "head",
            f"random in mode {self.mode}, whose probe makes its own",
            self.head,
        )
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
