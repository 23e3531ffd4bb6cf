"""A `python` that starts in milliseconds what needs torch: the process is forked from one that has
imported torch, NumPy and other packages of asrtool, and none of its own modules.

`folder()` holds it, to be put in front of PATH. Signals reach the forked process, and its exit
status is that of `python`. Processes that are to be killed or counted must be real ones: they are
children of the server, not of whoever called.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

ANSWER = 4  # bytes of an exit status
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
CLIENT = """#!{python} -ISE
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of this file
sys.path.insert(0, {here!r})
import warm_python
warm_python.ask({place!r}, {python!r})
"""
# what most commands would import for themselves
PACKAGES = (
    "kaldiio",
    "numpy",
    "rapidfuzz.distance",
    "safetensors.torch",
    "soundfile",
    "torch",
    "torch._dynamo",  # by the first step of an optimiser
    "yaml",
)
_folders: list[str] = []


def folder() -> str:
    """The folder with `python`, whose server ends with this process."""
    if not _folders:
        _folders.append(_start())
    return _folders[0]


def _start() -> str:
    import atexit  # here, since whoever asks imports this file for each command
    import subprocess
    import tempfile

    made = tempfile.mkdtemp(prefix="warm")
    place = os.path.join(made, "socket")
    with open(os.path.join(made, "python"), "w", opener=_executable) as stream:
        here = os.path.dirname(os.path.abspath(__file__))
        # isolated: the environment is for what is started
        stream.write(CLIENT.format(python=sys.executable, here=here, place=place))
    inherited = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [sys.executable, __file__, place],
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "UTF-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    server.stdout.readline()  # "ready"; without a server the real Python does everything

    def end() -> None:
        server.stdin.close()
        server.wait()

    atexit.register(end)
    return made


def _executable(path: str, flags: int) -> int:
    return os.open(path, flags, 0o755)


def python() -> str:
    """Path of the `python` in it."""
    return os.path.join(folder(), "python")


# -- the caller: started for every command, so it imports little ------------


def ask(place: str, python: str) -> None:
    """Let the server run this process's command line; what it cannot, the real Python does."""
    kind = sys.argv[1] if len(sys.argv) > 1 else ""
    server = socket.socket(socket.AF_UNIX)
    try:
        if kind.startswith("-") and kind not in ("-m", "-"):
            raise OSError("options are for the real one")
        if any("/dev/fd/" in word for word in sys.argv):
            raise OSError("files that are open here are not open there")
        server.connect(place)
    except OSError:
        os.execv(python, [python, *sys.argv[1:]])
    wanted = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    for number in FORWARDED:
        signal.signal(number, lambda number, _: server.send(bytes([number])))
    socket.send_fds(server, [len(wanted).to_bytes(ANSWER, "big")], [0, 1, 2])
    server.sendall(wanted)
    answer = server.recv(ANSWER)
    status = int.from_bytes(answer, "big", signed=True) if answer else -signal.SIGKILL
    if status < 0:
        if -status in FORWARDED:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


# -- the server --------------------------------------------------------------


def serve(place: str) -> None:
    """Fork a process for each caller until standard input ends; then the folder goes."""
    import gc
    import importlib
    import select
    import shutil

    for name in PACKAGES:
        importlib.import_module(name)
    gc.freeze()  # the collectors of the forked processes do not look at what is here

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    print("ready", flush=True)
    jobs: dict[int, socket.socket] = {}
    while True:
        callers = {caller: process for process, caller in jobs.items()}
        ready, _, _ = select.select([listener, woken, sys.stdin.fileno(), *callers], [], [])
        if sys.stdin.fileno() in ready:
            for process in jobs:
                os.kill(process, signal.SIGKILL)
            shutil.rmtree(os.path.dirname(place), ignore_errors=True)
            return
        for caller in callers.keys() & set(ready):
            try:
                number = caller.recv(1)
            except OSError:
                number = b""
            os.kill(callers[caller], number[0] if number else signal.SIGKILL)
            if not number:  # the caller was killed
                jobs.pop(callers[caller])
        if woken in ready:
            os.read(woken, 4096)
            answer(jobs)
        if listener in ready:
            caller, _ = listener.accept()
            wanted, files = receive(caller)
            process = os.fork()
            if process == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (listener, caller, *jobs.values()):
                    end.close()
                os.close(woken)
                os.close(wake)
                become(*wanted, files)
                return
            jobs[process] = caller
            for file in files:
                os.close(file)


def receive(caller: socket.socket) -> tuple[list, list[int]]:
    size, files, _, _ = socket.recv_fds(caller, ANSWER, 3)
    rest = b""
    while len(rest) < int.from_bytes(size, "big"):
        rest += caller.recv(1 << 16)
    return json.loads(rest), files


def answer(jobs: dict[int, socket.socket]) -> None:
    """Tell callers how their processes ended."""
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if process == 0:
            return
        caller = jobs.pop(process, None)
        if caller is not None:
            status = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError), caller:  # it may have been killed meanwhile
                caller.sendall(status.to_bytes(ANSWER, "big", signed=True))


def become(words: list[str], cwd: str, environment: dict[str, str], files: list[int]) -> None:
    """Do in this forked process what `python *words` does."""
    import multiprocessing.process
    import runpy
    from types import ModuleType

    import numpy

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    multiprocessing.process.ORIGINAL_DIR = cwd  # as when it is imported there
    os.environ.clear()
    os.environ.update(environment)
    numpy.random.seed()
    given = [os.path.abspath(part) for part in environment.get("PYTHONPATH", "").split(":") if part]
    sys.path[:1] = given
    main = sys.modules["__main__"] = ModuleType("__main__")
    if words[:1] == ["-m"]:
        sys.path.insert(0, cwd)
        sys.argv = ["-m", *words[2:]]
        # what `python -m` calls: run_module would restore sys.argv before the excepthook
        runpy._run_module_as_main(words[1])
        return
    sys.argv = words or [""]
    if words[:1] in ([], ["-"]):
        sys.path.insert(0, "")
        code = compile(sys.stdin.read(), "<stdin>", "exec")
    else:
        main.__file__ = os.path.abspath(words[0])
        sys.path.insert(0, os.path.dirname(os.path.realpath(words[0])))
        with open(words[0], "rb") as stream:
            code = compile(stream.read(), words[0], "exec")
    exec(code, vars(main))


if __name__ == "__main__":
    serve(sys.argv[1])
