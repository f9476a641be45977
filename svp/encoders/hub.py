"""Published weights: found in the local cache, or fetched once, announced first.

Offline means: the flag, or one of the variables `SVP_OFFLINE`, `HF_HUB_OFFLINE`. Offline or
failing, the message holds the command that fetches the file on a machine with a network.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from svp.errors import InputError, TemporaryError
from svp.progress import Progress

_TRUE: Final = ("1", "true", "yes", "on")


def is_offline(offline: bool | None) -> bool:
    """Return `offline`, or what the environment says where it is None."""
    if offline is not None:
        return offline
    return any(os.environ.get(n, "").lower() in _TRUE for n in ("SVP_OFFLINE", "HF_HUB_OFFLINE"))


def _cached(repository: str, names: Sequence[str]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def fetch(
    repository: str, names: Sequence[str], *, what: str, offline: bool | None, progress: Progress
) -> Path:
    """Return a local path of the first of `names` that the Hugging Face repository has.

    Args:
        repository: "owner/name".
        names: File names, the preferred one first.
        what: The encoder, for messages.
        offline: See the module.
        progress: Told before anything is downloaded.

    Raises:
        InputError: Offline and not in the cache, or the repository has none of the files.
        TemporaryError: The network failed.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    cached = _cached(repository, names)
    if cached is not None:
        return cached
    command = f"hf download {repository} {names[0]}"
    if is_offline(offline):
        raise InputError(
            f"The weights of {what} must be in the local cache when offline. Got no file of "
            f"{repository}. Run `{command}` where there is a network, or go online."
        )
    progress.say(f"{what}: downloading weights from the Hugging Face repository {repository}")
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except (GatedRepoError, RepositoryNotFoundError) as error:
            raise InputError(
                f"The weights of {what} must be readable for you. Got {type(error).__name__} from "
                f"{repository}. Accept its terms and log in, then run `{command}`."
            ) from error
        except LocalEntryNotFoundError as error:
            # The library's word for "no network, and not in the cache".
            raise _unreachable(what, repository, command, error) from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # whatever the HTTP client of this version raises
            raise _unreachable(what, repository, command, error) from error
    raise InputError(
        f"The weights of {what} must be in {repository}. Got none of {', '.join(names)} there. "
        "Download them by hand and name the file: MODEL@PATH."
    )


def _unreachable(what: str, repository: str, command: str, error: Exception) -> TemporaryError:
    reason = str(error).split("\n", 1)[0][:160]
    return TemporaryError(
        f"The weights of {what} must be downloaded from {repository}. Got {type(error).__name__}: "
        f"{reason}. Try again, or run `{command}` where there is a network."
    )
