"""A tiny campaign: coloured squares in class folders, a random small network, an own store."""

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from svp.encoders.backbones import build_backbone
from svp.encoders.folder import write_encoder_folder
from svp.encoders.preprocessing import imagenet_preprocessing
from svp.study.config import (
    DataSection,
    EncoderSection,
    FinetuneSection,
    ProxySection,
    StoreSection,
    StrategySection,
    StudyConfig,
)
from svp.study.embedding import embed_study
from svp.study.study import Study

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 70), "red": (200, 60, 50)}
SIZE = 16


def write_images(folder: Path, *, train: int, test: int, seed: int = 0) -> None:
    """Write `train` and `test` images per class, noisy enough that classes touch."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for name, colour in COLOURS.items():
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                noise = rng.normal(0, 70, size=(SIZE, SIZE, 3)) + rng.normal(0, 45, size=3)
                pixels = np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(target / f"{name}{number:03d}.png")


def write_encoder(folder: Path, seed: int = 0) -> None:
    """Write a small network with seeded random weights."""
    net = build_backbone("resnet8", image_size=SIZE, generator=torch.Generator().manual_seed(seed))
    write_encoder_folder(
        folder,
        module_state=net.state_dict(),
        arch="resnet8",
        image_size=SIZE,
        preprocessing=imagenet_preprocessing(SIZE),
        provenance={},
    )


def config_of(root: Path, **changes: object) -> StudyConfig:
    """Return the configuration of a study on the images, encoder and store under `root`."""
    fields: dict[str, object] = {
        "name": "squares",
        "seed": 7,
        "data": DataSection(source=(str(root / "images"),)),
        "encoder": EncoderSection(spec=str(root / "encoder"), batch_size=64, workers=1),
        "store": StoreSection(url=str(root / "store")),
        "proxy": ProxySection(kind="linear", options={}),
        "strategy": StrategySection(name="margin", first_round="random"),
        "finetune": FinetuneSection(
            options={"steps": 2, "batch_size": 8, "uratio": 1, "mode": "ft", "ema": 0.5}
        ),
    }
    return StudyConfig(**{**fields, **changes})


def write_material(root: Path, *, train: int = 20, test: int = 10) -> None:
    """Write images, encoder and store under `root`; embed once."""
    write_images(root / "images", train=train, test=test)
    write_encoder(root / "encoder")
    embed_study(Study.create(root / "first", config_of(root)))


def truth_of(study: Study) -> dict[str, str]:
    """Return the source's label of every item."""
    pool = study.scan().pool
    return dict(zip(pool.ids, pool.labels or (), strict=True))


def write_labels(path: Path, labels: dict[str, str]) -> Path:
    """Write a label file."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "label"])
        writer.writerows(labels.items())
    return path
