"""Errors of the feature store, by what the caller should do about them.

Every message reads "<what> must be <constraint>. Got <value>. <next step>." Each class is also
the built-in exception a reader would expect, so `except FileNotFoundError` works too.
"""


class FeatureStoreError(Exception):
    """A condition the store understands and explains; never a bug."""


class StoreFormatError(FeatureStoreError, ValueError):
    """The store was written in another format version, or its marker cannot be read."""


class StoreNotFoundError(FeatureStoreError, FileNotFoundError):
    """There is no store, pool or encoder under the name that was asked for."""


class StoreInputError(FeatureStoreError, ValueError):
    """What was asked for cannot be: correct it.

    A malformed URL, id or view, a bucket that is not there or that the credentials do not open, a
    place that cannot hold a store, vectors that cannot be stored.
    """


class PoolError(FeatureStoreError, ValueError):
    """Items of a pool are inconsistent, or ids are not in it."""


class MissingRowsError(FeatureStoreError, LookupError):
    """Some items have no embedding under this encoder and view: compute them.

    Attributes:
        missing: How many of the requested rows have no embedding.
        total: How many rows were requested.
    """

    def __init__(self, message: str, *, missing: int, total: int) -> None:
        super().__init__(message)
        self.missing = missing
        self.total = total


class CorruptChunkError(FeatureStoreError, OSError):
    """Stored bytes differ from what was published: restore them, or delete and recompute.

    Attributes:
        segment: Id of the segment, empty if the damage is outside segments.
        chunk: Key of the damaged object inside the segment.
    """

    def __init__(self, message: str, *, segment: str, chunk: str) -> None:
        super().__init__(message)
        self.segment = segment
        self.chunk = chunk


class EncoderMismatchError(FeatureStoreError, ValueError):
    """Stored vectors or identities belong to another encoder than their name says."""


class ViewMismatchError(FeatureStoreError, ValueError):
    """A table holds vectors of a view that was made in another way than the one asked for."""


class StoreConflictError(FeatureStoreError, RuntimeError):
    """Two writers described the same object differently; nothing was overwritten."""


class StorageUnavailableError(FeatureStoreError):
    """The storage did not answer although it was asked again and again: try later."""
