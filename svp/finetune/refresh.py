"""A fine-tuned backbone as an encoder of its own, whose identity says how it came to be."""

from pathlib import Path
from typing import Any, Protocol

from feature_store.digest import canonical_json, sha256_hex
from svp.encoders.folder import save_encoder
from svp.encoders.preprocessing import Preprocessing
from svp.finetune.model import FinetunedModel, TrainableEncoder


class RenderedEncoder(TrainableEncoder, Protocol):
    """An encoder that also knows how images become its input."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Image to bytes."""

    @property
    def decoder(self) -> str:
        """What makes pixels of bytes."""


def refresh_lineage(model: FinetunedModel) -> dict[str, Any]:
    """Return what distinguishes encoders refreshed from different labels or settings."""
    made = model.description
    return {
        "parent": made["encoder_id"],
        "labels_sha256": made["labels_sha256"],
        "config_sha256": sha256_hex(canonical_json(made["config"])),
        "seed": made["seed"],
    }


def save_refreshed_encoder(path: Path, model: FinetunedModel, encoder: RenderedEncoder) -> None:
    """Write the backbone of a fine-tuned model as an encoder directory.

    Pooling, preprocessing and decoder are the parent's, so its images look as they did before.

    Args:
        path: The directory; its name is then the spec of the new encoder.
        model: What `finetune` made from `encoder`.
        encoder: Where the fine-tune started.

    Raises:
        InputError: On opening, if the encoder comes from a plug-in that svp cannot rebuild.
    """
    save_encoder(
        path,
        module_state=model.backbone.state_dict(),
        architecture=encoder.identity["architecture"],
        pooling=encoder.identity["pooling"],
        preprocessing=encoder.preprocessing,
        decoder=encoder.decoder,
        lineage=refresh_lineage(model),
        provenance={"fine-tune": model.description["fingerprint"]},
    )
