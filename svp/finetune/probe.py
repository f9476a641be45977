"""The linear probe: multinomial logistic regression on frozen features, solved to its optimum.

The problem is convex, so it is solved by L-BFGS in double precision instead of by epochs of SGD.

Sources: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution" (why a probe comes first); Liu and Nocedal 1989 (L-BFGS).

Shapes: N = images, S = side in pixels, L = labelled images, d = features, C = classes.
"""

import torch
from torch.nn import functional

from svp.finetune.config import FinetuneConfig
from svp.finetune.data import FinetuneData
from svp.finetune.model import Classifier, FinetunedModel, Head, Normalisation
from svp.seed import derive_seed

_MAX_ITERATIONS = 1000
_GRADIENT_TOLERANCE = 1e-7


def solve_probe(
    x_Ld: torch.Tensor, y_L: torch.Tensor, num_classes: int, *, l2: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight (C, d) and bias (C,), float32, acting on the features as they are.

    Minimises summed cross-entropy + l2/2 (||W||^2 + ||b||^2) over standardised features; the
    standardisation is folded into the result. The bias is penalised as well, because that of a
    class without labels would otherwise run off to minus infinity.

    Args:
        x_Ld: Features; any float type.
        y_L: Classes in [0, C), int64.
        num_classes: C; classes may be absent from `y_L`.
        l2: Above 0.
    """
    x_Ld = x_Ld.double()
    mean_d = x_Ld.mean(dim=0)
    std_d = x_Ld.std(dim=0, correction=0)
    std_d = torch.where(std_d > 1e-12, std_d, 1.0)
    z_Ld = (x_Ld - mean_d) / std_d
    weight_Cd = z_Ld.new_zeros(num_classes, z_Ld.shape[1], requires_grad=True)
    bias_C = z_Ld.new_zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight_Cd, bias_C],
        max_iter=_MAX_ITERATIONS,
        history_size=20,
        tolerance_grad=_GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> torch.Tensor:
        solver.zero_grad()
        fit = functional.cross_entropy(z_Ld @ weight_Cd.T + bias_C, y_L)
        loss = fit + 0.5 * l2 / len(y_L) * (weight_Cd.square().sum() + bias_C.square().sum())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[no-untyped-call]
    raw_Cd = weight_Cd.detach() / std_d
    return raw_Cd.float(), (bias_C.detach() - raw_Cd @ mean_d).float()


def start_head(
    classifier: Classifier,
    normalisation: Normalisation,
    images_N3SS: torch.Tensor,
    data: FinetuneData,
    config: FinetuneConfig,
    *,
    seed: int,
    head: Head | None = None,
) -> None:
    """Give a classifier its first last layer: the given one, a solved probe or a random one.

    Args:
        classifier: Changed in its last layer only.
        normalisation: From images in [0, 1] to what the classifier takes.
        images_N3SS: uint8, on the classifier's device or the CPU.
        data: Rows and labels.
        config: `mode` decides between a probe and a random layer.
        seed: Draws the random layer.
        head: Taken instead, if given.
    """
    if head is not None:
        classifier.set_head(head)
        return
    classifier.draw_head(torch.Generator().manual_seed(derive_seed(seed, "finetune-head")))
    if config.mode == "ft":
        return
    frozen = FinetunedModel(
        classifier,
        normalisation,
        data.class_names,
        batch_size=config.eval_batch_size,
        precision=config.precision,
    )
    device, num_classes = frozen.device, len(data.class_names)
    rows_L = torch.from_numpy(data.labelled_rows).to(images_N3SS.device)
    # Part by part: the labelled images of a pool larger than memory are larger than memory too.
    parts = torch.split(rows_L, config.eval_batch_size)
    x_Ld = torch.cat([frozen.features(images_N3SS[rows]) for rows in parts]).to(device)
    y_L = torch.from_numpy(data.labels_L).to(device)
    weight_Cd, bias_C = solve_probe(x_Ld, y_L, num_classes, l2=config.probe_l2)
    classifier.set_head(Head(weight_Cd=weight_Cd, bias_C=bias_C))
    classifier.requires_grad_(True)
