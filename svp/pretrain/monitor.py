"""What is watched while features are learned: nearest neighbours and collapse.

Shapes: M = watched images, T = of them in the bank, Q = queries, d = features, C = classes.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

_ROWS: Final = 512


@torch.no_grad()
def features(
    backbone: nn.Module,
    images_u8_M3SS: torch.Tensor,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
) -> torch.Tensor:
    """Return features (M, d) float32 in eval mode; the module's mode is restored."""
    was_training = backbone.training
    backbone.eval()
    mean_131 = torch.tensor(mean, device=device).view(3, 1, 1)
    std_131 = torch.tensor(std, device=device).view(3, 1, 1)
    parts = []
    for part in torch.split(images_u8_M3SS, _ROWS):
        x = part.to(device).float().div_(255).sub_(mean_131).div_(std_131)
        parts.append(backbone(x.contiguous(memory_format=torch.channels_last)).float())
    backbone.train(was_training)
    return torch.cat(parts)


def knn_accuracy(
    bank_Td: torch.Tensor,
    bank_y_T: torch.Tensor,
    query_Qd: torch.Tensor,
    query_y_Q: torch.Tensor,
    *,
    k: int = 20,
) -> float:
    """Return the share of queries whose k nearest neighbours by cosine vote for their class.

    Each neighbour has one vote; a tie goes to the smallest class.

    Args:
        bank_Td: Features with known classes.
        bank_y_T: Their classes, int64 from 0.
        query_Qd: Features to classify.
        query_y_Q: Their classes.
        k: Neighbours, at most T are used.

    Returns:
        Accuracy in [0, 1].
    """
    classes = int(torch.maximum(bank_y_T.max(), query_y_Q.max())) + 1
    bank_Td = F.normalize(bank_Td, dim=1)
    right = 0
    parts = zip(torch.split(query_Qd, _ROWS), torch.split(query_y_Q, _ROWS), strict=True)
    for query_qd, y_q in parts:
        near_qk = (F.normalize(query_qd, dim=1) @ bank_Td.T).topk(min(k, len(bank_Td)), dim=1)
        votes_qC = F.one_hot(bank_y_T[near_qk.indices], classes).sum(dim=1)
        right += int((votes_qC.argmax(dim=1) == y_q).sum())
    return right / len(query_Qd)


def feature_spread(x_Md: torch.Tensor) -> float:
    """Return sqrt(d) times the mean standard deviation per dimension of L2-normalised features.

    It is 0 when all features are the same, the collapse BYOL must not fall into, and at most 1.
    """
    x_Md = F.normalize(x_Md.float(), dim=1)
    return float(x_Md.std(dim=0, correction=0).mean() * x_Md.shape[1] ** 0.5)
