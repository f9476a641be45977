"""`svp` as processes forked from one that has torch loaded: documents run dozens of them.

    python tests/forking_svp.py SOCKET           serves until its standard input closes
    python -IS tests/forking_svp.py SOCKET ARGUMENTS…    runs `svp ARGUMENTS…` there

Working directory, environment and standard streams are those of the caller.
"""

import importlib
import json
import os
import signal
import socket
import sys
import threading

_SLOW_TO_IMPORT = ("svp.embed", "svp.pretrain.train", "svp.finetune.run", "svp.strategies.catalog")


def serve(address):
    for module in _SLOW_TO_IMPORT:
        importlib.import_module(module)
    from svp.cli import run

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        while True:
            caller, _ = server.accept()
            if os.fork() == 0:
                os._exit(_answer(caller, run))
            caller.close()


def _end_with_parent():
    sys.stdin.buffer.raw.read()
    os._exit(0)


def _answer(caller, run):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = 1
    try:
        message, streams, _, _ = socket.recv_fds(caller, 2**20, 3)
        asked = json.loads(message)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        try:
            code = run(asked["arguments"])
        except Exception:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        caller.sendall(str(code).encode())
    return code


def ask(address, arguments):
    asked = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
        return int(server.recv(16) or b"1")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
