"""Self-supervised checkpoints: BYOL-EMAN, plain BYOL, lightly, MoCo, and torchvision-style files.

A BYOL checkpoint holds two networks. Which one is used is part of the encoder's identity: EMAN's
own evaluation reads the online network, ASVP's published features come from the target, because
both key prefixes have 27 letters and the later one overwrote the first when it cut them off.
"""

from collections.abc import Mapping
from typing import Final

import torch

from svp.encoders.backbones import build_backbone
from svp.encoders.preprocessing import imagenet_preprocessing
from svp.encoders.spec import EncoderSpec
from svp.encoders.weights import Loaded, load_state, read_state
from svp.errors import InputError
from svp.progress import Progress

# By branch, the prefixes behind which programs keep the backbone. Order: the most specific first.
_PREFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "target": (
        "target_net.backbone.",
        "target_encoder.net.",
        "target_encoder.",
        "target_network.encoder.",
        "target_network.",
        "backbone_momentum.",
        "teacher.backbone.",
        "teacher_backbone.",
        "encoder_k.",
    ),
    "online": (
        "online_net.backbone.",
        "online_encoder.net.",
        "online_encoder.",
        "online_network.encoder.",
        "online_network.",
        "student.backbone.",
        "student_backbone.",
        "encoder_q.",
        "backbone.",
    ),
    "plain": ("", "model.", "encoder.", "net.", "resnet."),
}
# The children of a torchvision ResNet in order, for files of a Sequential cut before the head.
_SEQUENTIAL: Final = {
    "0": "conv1",
    "1": "bn1",
    "4": "layer1",
    "5": "layer2",
    "6": "layer3",
    "7": "layer4",
}
_CLASSIFIER: Final = ("fc.",)
_TORCHVISION: Final = ("resnet18", "resnet50")
_SMALL_STEM_PX: Final = 3
_THUMBNAIL_PX: Final = 32
_FULL_PX: Final = 224


def _named(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    cut = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    if "0.weight" in cut and not any(n.startswith("conv1.") for n in cut):
        renamed = {}
        for name, value in cut.items():
            head, dot, tail = name.partition(".")
            renamed[f"{_SEQUENTIAL.get(head, head)}{dot}{tail}"] = value
        return renamed
    return cut


def backbones_in(
    state: Mapping[str, torch.Tensor], expected: set[str]
) -> dict[str, dict[str, torch.Tensor]]:
    """Return the backbones that `state` holds, by branch "target", "online" or "plain".

    Args:
        state: All tensors of a checkpoint.
        expected: Names of the backbone's own tensors; a prefix counts when most stand behind it.

    Returns:
        Named tensors of each branch found, prefixes removed, the classifier with them.
    """
    found = {}
    for branch, prefixes in _PREFIXES.items():
        for prefix in prefixes:
            named = _named(state, prefix)
            if 2 * len(expected & set(named)) > len(expected):
                found[branch] = named
                break
    return found


def _stem_size(arch: str, named: Mapping[str, torch.Tensor]) -> int:
    # The file does not say for which size it was trained; its stem does.
    if arch not in _TORCHVISION:
        return _THUMBNAIL_PX
    stem = named.get("conv1.weight")
    return _THUMBNAIL_PX if stem is not None and stem.shape[-1] == _SMALL_STEM_PX else _FULL_PX


def load(spec: EncoderSpec, *, offline: bool | None, progress: Progress) -> Loaded:
    """Load one backbone of the checkpoint that `spec` names.

    Without a branch in the spec: the target where there is one (what ASVP's features are), else
    the online or only network. Exactly the classifier may be left over.

    Raises:
        InputError: Unknown architecture, branch not in the file, or weights that do not fit.
    """
    del offline
    path = spec.path
    if path is None or not path.is_file():
        raise InputError(
            f"The checkpoint of a byol encoder must be a file. Got {path}. Write byol:ARCH@FILE."
        )
    state = read_state(path)
    names = build_backbone(spec.model, image_size=_THUMBNAIL_PX).state_dict()
    expected = {name for name in names if not name.endswith("num_batches_tracked")}
    found = backbones_in(state, expected)
    if not found:
        raise InputError(
            f"{path.name} must hold a backbone of architecture {spec.model}. Got tensors such as "
            f"{', '.join(sorted(state)[:3])}. Name the architecture these weights belong to."
        )
    branch = spec.branch or next(iter(found))
    if branch not in found:
        raise InputError(
            f"The branch of {path.name} must be one it holds: {', '.join(found)}. "
            f"Got {branch!r}. Leave '#{branch}' out or name another."
        )
    if spec.branch is None and len(found) > 1:
        progress.say(f"{spec.text}: has {' and '.join(found)}; using {branch} (add #BRANCH)")
    size = _stem_size(spec.model, found[branch])
    module = build_backbone(spec.model, image_size=size)
    load_state(
        module, found[branch], what=f"{path.name} ({branch}) for {spec.model}", ignore=_CLASSIFIER
    )
    return Loaded(
        module=module,
        architecture={"family": "backbone", "model": spec.model, "image_size": size},
        pooling="global average",
        preprocessing=imagenet_preprocessing(size),
        branch=branch,
        provenance={"spec": spec.text, "file": path.name},
    )
