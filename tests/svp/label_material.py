"""A study with rounds that need no encoder: small pictures, a selection, a receipt."""

import json
from pathlib import Path

from study_fixtures import config_of, write_images

from svp.study.record import ROUND_SCHEMA, Pick, write_selection
from svp.study.study import Study

CLASSES = ("blue", "green", "red")


def new_study(root: Path, *, train: int = 2) -> Study:
    """Return a study on `train` pictures of each of three colours."""
    write_images(root / "images", train=train, test=0)
    (root / "encoder").mkdir()
    return Study.create(root / "study", config_of(root))


def add_round(study: Study, ids: list[str], *, guess: str | None = "red") -> None:
    """Write the next round, with a proxy's guess if there is one."""
    number = len(list(study.rounds_dir.glob("*/round.json")))
    folder = study.rounds_dir / f"{number:03d}"
    folder.mkdir(parents=True)
    picks = tuple(
        Pick(
            rank=rank,
            id=name,
            uri=name,
            utility=1 / rank,
            reason="the proxy wavers",
            predicted=guess,
            confidence=None if guess is None else 0.75,
        )
        for rank, name in enumerate(ids, start=1)
    )
    write_selection(folder, number, "margin", picks)
    receipt = {
        "schema": ROUND_SCHEMA,
        "strategy": {"name": "margin"},
        "proxy": {"kind": "linear", "classes": [] if guess is None else list(CLASSES)},
    }
    (folder / "round.json").write_text(json.dumps(receipt))


def pool_ids(study: Study) -> list[str]:
    """Return the ids of the study's pictures."""
    return list(study.scan().pool.ids)
