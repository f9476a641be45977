"""Preloaded by the Dask workers of a trial: each chunk is noted before it is computed.

Every forward pass is a chunk there, because a batch is as large as one.
"""

import hashlib
import os
import time

from svp.embed.forward import Forward

LOG, PAUSE_S = "SVP_ENDURANCE_LOG", "SVP_ENDURANCE_PAUSE_S"


def dask_setup(worker: object) -> None:
    log, pause_s, launch = os.environ[LOG], float(os.environ[PAUSE_S]), Forward.launch

    def noted(self, images, digests_B32):
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, f"{hashlib.sha256(digests_B32.tobytes()).hexdigest()[:16]}\n".encode())
        os.close(handle)
        time.sleep(pause_s)
        return launch(self, images, digests_B32)

    Forward.launch = noted
