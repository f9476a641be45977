"""The whole job on scikit-learn's digits: real images, real training, no download.

The digits are 1,797 handwritten numerals of 8 x 8 pixels (Alpaydin and Kaynak 1998, "Optical
Recognition of Handwritten Digits"). They are written out as PNG files in class folders, so that
everything from there on is what a person does with a folder of their own.
"""

import csv
import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from svp.errors import InputError
from svp.progress import Progress, Silent
from svp.seed import derive_seed

if TYPE_CHECKING:
    from svp.study.simulate import SimulationResult
    from svp.study.study import Study

SIDE_PX: Final = 32
_TEST_ONE_IN: Final = 4
_EPOCHS: Final = 20
_BATCH: Final = 20
_ROUNDS: Final = 5
_SEEDS: Final = 5
_STEPS: Final = 300


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What the demo did.

    Attributes:
        folder: Everything it wrote.
        report: The report.
        accuracy: Test accuracy of the fine-tuned model.
        labels: Labels it was trained with.
        seconds: Wall time by stage.
        text: What to tell a person.
    """

    folder: Path
    report: Path
    accuracy: float
    labels: int
    seconds: dict[str, float]
    text: str


class _Clock:
    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def stage(self, name: str, does: str) -> Iterator[None]:
        self._progress.say(f"[{len(self.seconds) + 1}/7] {does}")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def write_digits(folder: Path, *, seed: int = 0) -> int:
    """Write the digits as `train/<digit>/*.png` and `test/<digit>/*.png`; return their number.

    Args:
        folder: Where; it appears when it is complete, and is left alone when it is there.
        seed: Decides which quarter is the test split.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    if folder.exists():
        return len(digits.target)
    partial = folder.with_name(f"{folder.name}.partial")
    for place, (pixels_88, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        held_out = derive_seed(seed, "digits", place) % _TEST_ONE_IN == 0
        path = partial / ("test" if held_out else "train") / str(digit) / f"{place:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray((pixels_88 * (255 / 16)).round().astype("uint8"))
        small.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(path)
    partial.rename(folder)
    return len(digits.target)


def run_demo(
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    simulation_text: Callable[["SimulationResult"], str] = str,
) -> DemoResult:
    """Pretrain, embed, simulate, label, fine-tune and report in `folder`.

    A demo that was stopped continues; a finished one is read again.

    Args:
        folder: Where to write everything; made if it is not there.
        seed: Decides every random choice.
        progress: Where to report.
        simulation_text: Renders the simulation for people.

    Raises:
        InputError: The folder holds something else.
    """
    from svp.study.cells import SimulationConfig
    from svp.study.config import (
        DataSection,
        EncoderSection,
        FinetuneSection,
        StoreSection,
        StudyConfig,
    )
    from svp.study.embedding import embed_study
    from svp.study.finetune import finetune_study
    from svp.study.pretraining import pretrain_source
    from svp.study.report import write_report
    from svp.study.simulate import simulate
    from svp.study.study import Study

    progress = progress if progress is not None else Silent()
    images, encoder, path = folder / "digits", folder / "encoder", folder / "study"
    known = {"digits", "digits.partial"}
    if folder.exists() and not (
        folder.is_dir()
        and (known & {p.name for p in folder.iterdir()} or not any(folder.iterdir()))
    ):
        raise InputError(
            f"The demo's folder must be new, empty or a demo's. Got {folder}, which holds "
            "something else. Name another: svp demo FOLDER"
        )
    clock = _Clock(progress)
    with clock.stage("write", f"Writing scikit-learn's digits as images into {images}"):
        total = write_digits(images, seed=seed)
    with clock.stage(
        "pretrain", "Pretraining a small encoder on them by BYOL-EMAN, without labels"
    ):
        pretrain_source(
            images,
            encoder,
            views="glyphs",
            overrides=_recipe(),
            seed=seed,
            progress=progress,
        )
    if (path / "study.toml").exists():
        study = Study.open(path)
    else:
        study = Study.create(
            path,
            StudyConfig(
                name="Handwritten digits",
                seed=seed,
                data=DataSection(source=(str(images),)),
                encoder=EncoderSection(spec=str(encoder)),
                store=StoreSection(url=str(folder / "store")),
                finetune=FinetuneSection(options={"steps": _STEPS, "flip": False}),
            ),
        )
    with clock.stage("embed", "Embedding every image once, into the feature store"):
        embed_study(study, progress=progress)
    with clock.stage("simulate", f"Simulating {_ROUNDS} rounds with known labels, {_SEEDS} seeds"):
        simulated = simulate(
            study,
            SimulationConfig(
                strategies=("margin",), batch=_BATCH, rounds=_ROUNDS, seeds=tuple(range(_SEEDS))
            ),
            progress=progress,
        )
    progress.say(simulation_text(simulated))
    with clock.stage("label", "The same as a person: select, label, select, label"):
        labels = _label_by_hand(study, progress)
    with clock.stage(
        "finetune", f"Fine-tuning on {labels} labels and all other images by FlexMatch"
    ):
        tuned = finetune_study(study, progress=progress)
    with clock.stage("report", "Writing the report"):
        report = write_report(study, progress=progress)
    accuracy = float(tuned.metrics["evaluation"]["accuracy"])
    return DemoResult(
        folder=folder,
        report=report,
        accuracy=accuracy,
        labels=labels,
        seconds=clock.seconds,
        text=_closing(folder, total, labels, accuracy, report, clock.seconds),
    )


def _recipe() -> dict[str, Any]:
    """Return what differs from the recipe for thumbnails: the digits are 8 x 8 pixels, and few."""
    return {
        "image_size": 8,
        "view_share": 1.0,
        "epochs": _EPOCHS,
        "batch_size": 64,
        "momentum0": 0.95,
        "head_width": 256,
        "projection_dim": 64,
    }


def _label_by_hand(study: "Study", progress: Progress) -> int:
    """Select and answer until the budget of the simulation is spent; return the labels."""
    from feature_store.atomic import write_text
    from svp.study.labels import import_labels, read_labels
    from svp.study.rounds import select

    budget = _BATCH * (_ROUNDS + 1)
    while len(read_labels(study)) < budget:
        chosen = select(study, _BATCH)
        answers = io.StringIO()
        writer = csv.writer(answers, lineterminator="\n")
        writer.writerow(["id", "label"])
        # The folder's name is the digit: what a person would read off the image.
        writer.writerows([pick.id, pick.id.split("/")[1]] for pick in chosen.picks)
        file = study.path.parent / "answers" / f"{chosen.number:03d}.csv"
        file.parent.mkdir(exist_ok=True)
        write_text(file, answers.getvalue())
        done = import_labels(study, file)
        progress.say(
            f"  round {chosen.number}: {len(chosen.picks)} images by "
            f"{chosen.receipt['strategy']['name']}, {done.labelled} labels so far"
        )
    return len(read_labels(study))


def _closing(
    folder: Path,
    total: int,
    labels: int,
    accuracy: float,
    report: Path,
    seconds: dict[str, float],
) -> str:
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    return f"""
Done: {labels} labels of {total:,} images gave a model that reads {accuracy:.1%} of the unseen test
images. {spent}.

Look at it:           {report}
What was selected:    {folder / "study" / "rounds" / "001" / "selection.csv"}

On your own folder of images:
  svp pretrain --source YOUR_IMAGES --output encoder     # or a CLIP, CoCa or timm encoder
  svp init mystudy --source YOUR_IMAGES --encoder ./encoder --store store
  svp embed mystudy
  svp select mystudy --budget 100
  svp labels import mystudy answers.csv                  # columns id,label; then select again
  svp finetune mystudy
  svp report mystudy"""
