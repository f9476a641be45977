"""The standardiser of a pool that no machine holds: tiles summed where their rows are.

Shapes: n = rows read at once, d = features.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from svp.cluster.device import enough_threads, use_threads, worker_device
from svp.cluster.executor import Advance, Executor
from svp.errors import InputError
from svp.progress import Progress
from svp.study.located import Located, RowReader, TableAddress
from svp.study.scoring import PART_ROWS, READ_ROWS

if TYPE_CHECKING:
    from svp.proxies import Standardiser

Float32Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class _Summer:
    reader: RowReader
    device: str
    threads: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MomentsJob:
    """Sums of tiles of the pool, for its standardiser; a `svp.cluster.executor.Job`.

    Attributes:
        address: The table.
        origin_d: The pool's first row, float32.
        device: Where to compute.
        threads: Of the client's torch.
    """

    address: TableAddress
    origin_d: Float32Array
    device: str
    threads: int

    def open(self) -> _Summer:
        """Open the store's table."""
        import torch

        from svp.proxies.standardiser import TILE_ROWS, tile_sums

        device = worker_device(self.device)
        generator = torch.Generator().manual_seed(0)
        x_Td = torch.randn(TILE_ROWS, self.address.dim, generator=generator).to(device)
        threads = enough_threads(self.threads, lambda: tile_sums(x_Td, x_Td[0]).cpu())
        return _Summer(RowReader(self.address), device, threads)

    def run(self, state: _Summer, part: Located, advance: Advance) -> Float32Array:
        """Return the sums of the part's tiles, (tiles, 2, d)."""
        import torch

        from svp.proxies.standardiser import TILE_ROWS, tile_sums

        use_threads(state.threads)
        origin_d = torch.from_numpy(self.origin_d).to(state.device)
        sums = []
        for start in range(0, len(part), READ_ROWS):
            x_nd = torch.from_numpy(state.reader.read(part.take(slice(start, start + READ_ROWS))))
            x_nd = x_nd.to(state.device)
            sums += [
                tile_sums(x_nd[tile : tile + TILE_ROWS], origin_d)
                for tile in range(0, len(x_nd), TILE_ROWS)
            ]
            advance(len(x_nd))
        return torch.stack(sums).cpu().numpy()


def standardise(
    executor: Executor,
    address: TableAddress,
    located: Located,
    *,
    device: str,
    progress: Progress,
) -> "Standardiser":
    """Return the standardiser of the located rows, with the bits of `Standardiser.fit`.

    Raises:
        InputError: If there are no rows, or a value is NaN or infinite.
    """
    import torch

    from svp.proxies import Standardiser

    if not len(located):
        raise InputError("A standardiser must be fitted on rows. Got none. Embed the pool first.")
    first_1d = RowReader(address).read(located.take(slice(0, 1)))
    origin_d = np.ascontiguousarray(first_1d[0], np.float32)
    job = MomentsJob(
        address=address, origin_d=origin_d, device=device, threads=torch.get_num_threads()
    )
    parts = (
        located.take(slice(start, start + PART_ROWS)) for start in range(0, len(located), PART_ROWS)
    )
    sums: dict[int, Float32Array] = {}
    with progress.task("averaging", len(located), "rows") as task:
        sums.update(executor.run(job, parts, task))
    tiles = (torch.from_numpy(tile_2d) for number in sorted(sums) for tile_2d in sums[number])
    return Standardiser.of_sums(torch.from_numpy(origin_d), tiles, len(located))
