"""Text towers of CLIP and CoCa from open_clip: prompts to vectors beside those of the images.

Only for building a head from class names: the image tower of the same weights is `openclip`'s, and
this one is dropped once the prompts are read.
"""

from collections.abc import Sequence
from typing import Any, Final, cast

import torch
from torch import nn

from svp.encoders import openclip
from svp.encoders.spec import EncoderSpec, parse_spec
from svp.encoders.weights import read_state
from svp.errors import InputError
from svp.progress import Progress, Silent

_BATCH: Final = 256
_SETS: Final = ("simple", "imagenet")


class TextTower:
    """Maps prompts to vectors.

    Attributes:
        scale: exp(logit_scale), what cosines are multiplied by to become logits.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        """Take over a model of open_clip; its image tower is not used."""
        self._model, self._tokenizer = model.eval(), tokenizer
        self.scale = float(cast(torch.Tensor, model.logit_scale).detach().exp())

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return one vector per prompt, float32 (P, d), not normalised."""
        parts = [
            cast(Any, self._model).encode_text(self._tokenizer(list(prompts[i : i + _BATCH])))
            for i in range(0, len(prompts), _BATCH)
        ]
        return torch.cat(parts).float()


def prompt_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return templates with `{}` for the class, or the set that a single name stands for.

    `simple` (7) and `imagenet` (80) are those of Radford et al. 2021, "CLIP", as open_clip ships
    them.

    Raises:
        InputError: A template has no `{}`, or there is none.
    """
    if len(templates) == 1 and templates[0] in _SETS:
        from open_clip import zero_shot_metadata as sets

        known = (
            sets.SIMPLE_IMAGENET_TEMPLATES
            if templates[0] == "simple"
            else sets.OPENAI_IMAGENET_TEMPLATES
        )
        return tuple(one("{}") for one in known)
    wrong = [one for one in templates if one.count("{}") != 1]
    if wrong or not templates:
        raise InputError(
            "templates must each hold {} once, for the class, or name a set, simple or imagenet. "
            f"Got {wrong[0] if wrong else 'none'!r}. Write templates = ['a photo of a {{}}.']."
        )
    return tuple(templates)


def open_text_tower(
    spec: str, *, offline: bool | None = None, progress: Progress | None = None
) -> TextTower:
    """Open the text tower of the weights that an `open_clip:` spec names.

    Raises:
        InputError: Another kind of encoder, weights without a text tower, or a tokenizer that
            open_clip does not carry.
    """
    parsed = parse_spec(spec)
    if parsed.family != "open_clip":
        raise InputError(
            f"A zero-shot head must come from an open_clip encoder. Got {spec}. Set "
            "finetune.head = 'random', or use an encoder with a text tower."
        )
    config, quick_gelu, weights = openclip.described(
        parsed, offline=offline, progress=progress or Silent()
    )
    text = dict(config.get("text_cfg") or {})
    if not text:
        raise _without(parsed, "a model without text_cfg")
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        raise _without(parsed, "one whose tokenizer is not open_clip's own")
    import open_clip

    with torch.random.fork_rng(devices=[]):
        model = _build(config, quick_gelu)
    del model.visual
    state = {n: v for n, v in read_state(weights).items() if not n.startswith("visual.")}
    if isinstance(model, open_clip.CustomTextCLIP | open_clip.CoCa):
        from open_clip.model import convert_to_custom_text_state_dict

        state = dict(convert_to_custom_text_state_dict(state))
    missing, _ = model.load_state_dict(state, strict=False)
    # A captioning decoder takes no part in reading prompts.
    lacking = [name for name in missing if not name.startswith(("text_decoder.", "text.attn_mask"))]
    if lacking:
        raise _without(parsed, f"{weights.name} without {lacking[0]}")
    tokenizer = open_clip.SimpleTokenizer(
        context_length=int(text.get("context_length", 77)), **text.get("tokenizer_kwargs", {})
    )
    return TextTower(model, tokenizer)


def _build(config: dict[str, Any], quick_gelu: bool) -> nn.Module:
    import open_clip

    known = {k: v for k, v in config.items() if k not in ("custom_text", "quick_gelu")}
    vision = dict(known["vision_cfg"])
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    known |= {"vision_cfg": vision, "quick_gelu": quick_gelu}
    kind: Any = open_clip.CLIP
    if "multimodal_cfg" in known:
        kind = open_clip.CoCa
    elif config.get("custom_text"):
        kind = open_clip.CustomTextCLIP
    return cast(nn.Module, kind(**known))


def _without(spec: EncoderSpec, got: str) -> InputError:
    return InputError(
        f"A zero-shot head must come from weights with a text tower that open_clip can build. Got "
        f"{got} for {spec.text}. Set finetune.head = 'random', or use CLIP or CoCa weights."
    )
