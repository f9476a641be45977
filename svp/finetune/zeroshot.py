"""A head made of class names, before any label: how the encoder's own text tower reads them.

Sources: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision", section 3.1.4 (ensembles of prompts, averaged as vectors); Wortsman et al. 2022,
"Robust Fine-Tuning of Zero-Shot Models" (fine-tuning from such a head).

Shapes: C = classes, P = templates, d = features.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn import functional

from svp.finetune.model import Head


class TextEncoder(Protocol):
    """What a zero-shot head needs of a text tower."""

    @property
    def scale(self) -> float:
        """What cosines are multiplied by to become logits."""

    def encode(self, prompts: Sequence[str], /) -> torch.Tensor:
        """Return one vector per prompt, (P, d)."""


def zero_shot_head(
    tower: TextEncoder, class_names: Sequence[str], templates: Sequence[str]
) -> Head:
    """Return a head on unit features whose logits are scaled cosines to the classes' prompts.

    Of a class every prompt's vector is scaled to length 1, their mean again, and multiplied by
    the tower's scale; so each row of the weight has that length, and the bias is 0.

    Args:
        tower: Reads prompts; not kept.
        class_names: Of the C classes; underscores are read as spaces.
        templates: With `{}` once each, for the class.
    """
    rows = []
    for name in class_names:
        prompts = [template.replace("{}", name.replace("_", " ")) for template in templates]
        unit_Pd = functional.normalize(tower.encode(prompts).float(), dim=1)
        rows.append(functional.normalize(unit_Pd.mean(dim=0), dim=0))
    weight_Cd = tower.scale * torch.stack(rows)
    return Head(
        weight_Cd=weight_Cd, bias_C=weight_Cd.new_zeros(len(class_names)), unit_features=True
    )
