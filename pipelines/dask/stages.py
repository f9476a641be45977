"""The stages of a study that a Dask cluster carries, on a client that the caller keeps.

For clusters that the command line cannot start: Kubernetes, Slurm through dask-jobqueue, SSH.
Both may be killed at any instant and called again.

    from dask_jobqueue import SLURMCluster
    from distributed import Client
    from pipelines.dask import embed, select

    with SLURMCluster(cores=8, memory="32GB", worker_extra_args=["--resources GPU=1"]) as cluster:
        cluster.adapt(maximum=40)
        with Client(cluster) as client:
            embed("mystudy", client)
            select("mystudy", client, budget=500)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from svp.progress import Progress, automatic

if TYPE_CHECKING:
    from distributed import Client

    from svp.study.embedding import Embedded
    from svp.study.record import RoundResult


def embed(
    study: str | Path,
    client: "Client",
    *,
    device: str = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> "Embedded":
    """Embed what a study's images lack, as `svp embed STUDY --dask` does.

    Args:
        study: The study's folder.
        client: Of a cluster whose workers reach the images and the store; stays open.
        device: Where the encoder runs on a worker; `auto` takes a GPU if there is one.
        progress: Where to report; default: a bar or lines on stderr.
        options: Further arguments of `svp.study.embedding.embed_study`, such as `retry`.

    Raises:
        SvpError: As one process would; `TemporaryError` where another call may help.
    """
    from svp.cluster.dask import DaskExecutor
    from svp.study.embedding import embed_study
    from svp.study.study import Study

    return embed_study(
        Study.open(study),
        executor=DaskExecutor(client),
        worker_device=device,
        progress=progress or automatic(),
        **options,
    )


def select(
    study: str | Path,
    client: "Client",
    *,
    budget: int,
    device: str = "cpu",
    progress: Progress | None = None,
    **options: Any,
) -> "RoundResult":
    """Choose the next images to label, as `svp select STUDY --dask` does.

    Workers read the store segment by segment and return the best of each part, so the pool is
    never on one machine. Scores choose what one process chooses, bit for bit; other strategies
    choose in two rounds, recorded as `approx:hierarchical`.

    Args:
        study: The study's folder.
        client: Of a cluster whose workers reach the store; stays open.
        budget: How many images.
        device: Where the proxy is fitted and workers score.
        progress: Where to report; default: a bar or lines on stderr.
        options: Further arguments of `svp.study.rounds.select`, such as `strategy`.

    Raises:
        SvpError: As one process would; `TemporaryError` where another call may help.
    """
    from svp.cluster.dask import DaskExecutor
    from svp.study.rounds import select as select_round
    from svp.study.study import Study

    return select_round(
        Study.open(study),
        budget,
        device=device,
        executor=DaskExecutor(client),
        progress=progress or automatic(),
        **options,
    )
