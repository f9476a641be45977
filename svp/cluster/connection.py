"""From what the user writes behind `--dask` to an executor.

- `local`: worker processes on this machine, one per GPU, else as many as its cores carry;
- `local:N`: N of them;
- `tcp://HOST:PORT` or `tls://…`: a scheduler that runs already;
- `FILE.json`: its scheduler file, as `dask scheduler --scheduler-file` writes it.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from svp.errors import InputError

if TYPE_CHECKING:
    from svp.cluster.dask import DaskExecutor


@contextlib.contextmanager
def connect(target: str) -> "Iterator[DaskExecutor]":
    """Open a Dask cluster for the length of a `with` block.

    Args:
        target: See the module's list. A cluster of `local` is started, and stopped at the end.

    Raises:
        InputError: The extra `dask` is not installed, or `target` has no such form.
        TemporaryError: No scheduler answers.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--dask must have dask.distributed installed. Got an environment without it. "
            'Install it: pip install "svp[dask]"'
        ) from error
    from svp.cluster.dask import DaskExecutor, dial, local_cluster

    kind, _, count = target.partition(":")
    if kind != "local":
        with dial(target) as client:
            yield DaskExecutor(client)
        return
    if target != "local" and not (count.isdecimal() and int(count)):
        raise InputError(
            f"--dask must be local, local:N, an address or a scheduler file. Got {target!r}. "
            "Write local:2 for two worker processes."
        )
    with local_cluster(int(count) if count else None) as cluster, dial(cluster) as client:
        yield DaskExecutor(client)
