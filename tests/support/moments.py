"""A callback that does something at one moment of a run: sends a signal, or raises an exception."""

import signal
from collections.abc import Callable

import lightning as L
from lightning.pytorch.callbacks import Callback

ACTIONS: dict[str, Callable[[], object]] = {
    "SIGTERM": lambda: signal.raise_signal(signal.SIGTERM),
    "SIGHUP": lambda: signal.raise_signal(signal.SIGHUP),
    "SIGINT": lambda: signal.raise_signal(signal.SIGINT),
    "ZeroDivisionError": lambda: 1 // 0,
}


class At(Callback):
    """Does `action` at the `count`-th call of a hook."""

    def __init__(self, hook: str, count: int, action: str) -> None:
        self.calls = 0

        def at(trainer: L.Trainer, *arguments: object) -> None:
            self.calls += 1
            if self.calls == count:
                ACTIONS[action]()

        setattr(self, hook, at)
