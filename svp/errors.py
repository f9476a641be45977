"""Errors by what the caller should do about them.

Every message reads "<what> must be <constraint>. Got <value>. <next step>." The command line
turns each into one line on stderr and the exit code of its class; anything else is a bug and
keeps its traceback.
"""

from typing import Any, ClassVar


class SvpError(Exception):
    """A condition svp understands and explains; never a bug."""

    exit_code: ClassVar[int] = 1


class InputError(SvpError, ValueError):
    """A file, an argument or a configuration is wrong: correct it and run again."""

    exit_code: ClassVar[int] = 3


class IdentityError(SvpError, RuntimeError):
    """Something on disk belongs to other weights, data or versions than those asked for."""

    exit_code: ClassVar[int] = 4


class FailureRateError(SvpError, RuntimeError):
    """More items failed than the run allows.

    Attributes:
        result: What the run did nevertheless, failures with their reasons included; or None.
    """

    exit_code: ClassVar[int] = 5

    def __init__(self, message: str, *, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class TemporaryError(SvpError, RuntimeError):
    """A network, a lock or a full disk: the same command may succeed later."""

    exit_code: ClassVar[int] = 75
