"""Work in parts: in this process, or on the workers of a Dask cluster."""

from svp.cluster.connection import connect
from svp.cluster.executor import Executor, InProcess, Job

__all__ = ["Executor", "InProcess", "Job", "connect"]
