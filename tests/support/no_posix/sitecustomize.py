"""Hides what Windows lacks from cubediff's own modules, and starts processes by spawn.

Python imports this file when it starts with this folder on PYTHONPATH, in child processes too.
"""

import builtins
import multiprocessing
import os
import signal
import types
from collections.abc import Mapping, Sequence

MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}
NAMES = {
    "os": "O_CLOEXEC O_DIRECTORY O_NONBLOCK fork geteuid getpgid getuid killpg mkfifo pread sched_getaffinity setsid "
    "statvfs sync uname",
    "signal": "SIGALRM SIGCONT SIGHUP SIGKILL SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 alarm pthread_sigmask setitimer sigwait",
}


def without(module: types.ModuleType, names: Sequence[str]) -> types.ModuleType:
    """A copy of a module that lacks some names."""
    copy = types.ModuleType(module.__name__)
    vars(copy).update((name, value) for name, value in vars(module).items() if name not in names)
    return copy


REDUCED = {module.__name__: without(module, NAMES[module.__name__].split()) for module in (os, signal)}
real_import = builtins.__import__


def reduced_import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> types.ModuleType:
    """`__import__`, with other results for modules of cubediff."""
    importer = globals or {}
    spec = importer.get("__spec__")  # a command that runs as __main__ has its name there
    names = (str(importer.get("__name__")), str(getattr(spec, "name", "")))
    if level == 0 and any(each.split(".")[0] == "cubediff" for each in names):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name.split(".")[0] in REDUCED and not (fromlist and "." in name):
            return REDUCED[name.split(".")[0]]
    return real_import(name, globals, locals, fromlist or (), level)


builtins.__import__ = reduced_import
multiprocessing.set_start_method("spawn")
multiprocessing.get_all_start_methods = lambda: ["spawn"]
