"""Python in a new process that need not import again what all commands import: torch, Lightning, Hydra, Matplotlib.

`python forking.py serve SOCKET` imports these, and nothing of this project, once. `python -SE forking.py SOCKET
ARGUMENTS` is then as `python ARGUMENTS`, with its own folder, environment, standard streams, signals and exit code, but
runs in a fork of the server, which saves it three seconds. What has to see an interpreter start is no case for it.
Processes that such a one starts in turn to train (ranks, jobs of submitit) are forks as well: its `sys.executable` is a
script that asks the server, too.
"""

import os
import signal
import socket
import sys
from pathlib import Path

PRELOADED = ("torch._dynamo", "torchmetrics", "pytorch_lightning", "hydra", "matplotlib.figure", "rich.console")
LIMIT = 1 << 20
PYTHON = """#!/bin/sh
case "$1" in
  -u | *train.py) exec {python} -SE {here} {socket} "$@" ;;
  *) exec {python} "$@" ;;
esac
"""


def serve(path):
    """Serve until the standard input ends. In a fork, return what to run."""
    import gc
    import importlib
    import pickle
    import select

    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    script = Path(path).with_name("python")
    script.write_text(PYTHON.format(python=sys.executable, here=__file__, socket=path))
    script.chmod(0o700)
    sys.executable = str(script)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listening, 0], [], [])
            if 0 in ready:
                os._exit(0)
            connection, _ = listening.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection:
        message, streams, _, _ = socket.recv_fds(connection, LIMIT, 3)
        runner = os.fork()
        if runner:
            for stream in streams:
                os.close(stream)
            connection.sendall(b"%d\n" % runner)
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(runner, 0)[1]))
            os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    return pickle.loads(message)


def become(arguments, folder, environment):
    """What `python ARGUMENTS` does once its interpreter has started."""
    import io
    import runpy

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    encoding, _, errors = environment.get("PYTHONIOENCODING", "utf-8").partition(":")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        mode = "r" if number == 0 else "w"
        stream = open(number, mode + "b", closefd=False)  # noqa: SIM115  as long as the process
        how = errors or ("backslashreplace" if name == "stderr" else "strict")
        setattr(sys, name, io.TextIOWrapper(stream, encoding, how, line_buffering=name == "stderr"))
        setattr(sys, f"__{name}__", getattr(sys, name))
    own = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    if arguments[0] == "-u":
        arguments = arguments[1:]
    first = str(Path(arguments[0]).resolve().parent) if arguments[0][0] != "-" else folder
    sys.path[:] = [first, *own, *sys.path[1:]]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def ask(path, arguments):
    """Have a fork run it with this process's streams; signals are handed on."""
    import pickle

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        message = pickle.dumps((arguments, str(Path.cwd()), dict(os.environ)))
        socket.send_fds(connection, [message], [0, 1, 2])
        for number in (0, 1, 2):
            os.close(number)  # whoever reads must see the end when the fork ends
        lines = connection.makefile("rb")
        runner = int(lines.readline())
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(each, lambda number, _: os.kill(runner, number))
        status = int(lines.readline())
    if status < 0:
        if -status != signal.SIGKILL:  # which nobody can handle
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        become(*serve(sys.argv[2]))
    else:
        ask(sys.argv[1], sys.argv[2:])
