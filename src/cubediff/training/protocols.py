"""Protocols that the data module, callbacks and loggers of a run implement by their methods alone.

A callback or logger of a config takes part in a run by implementing the methods of a protocol; `runs.fit` depends on no
class of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L


class TrainerAttributes(Protocol):
    """Attributes of `lightning.Trainer` that its class does not declare; cast a trainer to it to read them."""

    datamodule: TrainingData
    log_every_n_steps: int


@runtime_checkable
class TrainingData(Protocol):
    """The data module of a run, a `LightningDataModule` that also has these."""

    batch_size: int
    """Panoramas per device and micro-batch."""

    @property
    def paths(self) -> Sequence[str]:
        """The folders, URLs or tars that it reads; recorded in run.json."""

    @property
    def skipped(self) -> int:
        """Number of damaged samples that this rank skipped so far."""

    def samples(self, split: str) -> int:
        """Number of panoramas in "train" or "val"."""


def is_encoded(data: object) -> bool:
    """Whether a data module's batches are latents and text states, so that the encoders are not kept in memory.

    Such a data module has the fingerprint of the encoders as `encoded_by`; for others it is None or absent.
    """
    return getattr(data, "encoded_by", None) is not None


@runtime_checkable
class IdentityWriter(Protocol):
    """A callback that writes checkpoints, which resume only in the run with the same identity."""

    def set_run_identity(self, identity: dict[str, object]) -> None:
        """Receives the identity before training starts."""


@runtime_checkable
class EncoderUser(Protocol):
    """A callback that needs the encoders; it is left out when training on latents."""

    def left_out_without_encoders(self) -> str:
        """Returns a line to print that names the missing output."""


@runtime_checkable
class FlopsConsumer(Protocol):
    """A callback that computes MFU."""

    def set_flops(self, per_panorama: float, device_per_second: float) -> None:
        """Receives what MFU is computed from, before training starts.

        Args:
            per_panorama: FLOPs of a training step per panorama.
            device_per_second: Peak FLOPs per second of one device.
        """


@runtime_checkable
class ExportWeights(Protocol):
    """A callback whose weights are exported instead of the trained ones, such as an EMA."""

    weights_name: str
    """Name of the weights in training.json."""

    def averaged(self, module: L.LightningModule) -> AbstractContextManager[None]:
        """Returns a context in which the module has these weights; entered by every rank."""


@runtime_checkable
class RankWatcher(Protocol):
    """A callback that watches the other ranks until the run has ended."""

    def lost_rank(self) -> str | None:
        """Names a rank that is gone; None if there is none."""

    def on_run_end(self, failed: bool) -> None:
        """Stops watching, after the export or a failure."""


@runtime_checkable
class ResumableLogger(Protocol):
    """A logger that appends to its own record when a run resumes."""

    def begin_at(self, step: int) -> None:
        """Removes the rows from `step` on, which an interrupted process logged after its last checkpoint."""


@runtime_checkable
class ExportLogger(Protocol):
    """A logger that keeps the exported pipeline."""

    def log_pipeline(self, folder: Path) -> None:
        """Receives the finished export's folder; called on rank 0."""


CALLBACK_PROTOCOLS: tuple[type, ...] = (IdentityWriter, EncoderUser, FlopsConsumer, ExportWeights, RankWatcher)
LOGGER_PROTOCOLS: tuple[type, ...] = (ResumableLogger, ExportLogger)


def require_type(value: object, kind: type, key: str) -> None:
    """Checks the class of an object.

    Raises:
        ValueError: If it is not a `kind`; names the config's `key`, the expected class and the actual one.
    """
    if not isinstance(value, kind):
        raise ValueError(
            f"{key}._target_: expected a subclass of {kind.__qualname__}, got {_name(value)}: choose another class"
        )


def require_members(value: object, protocol: type, key: str) -> None:
    """Checks that an object has all members of a protocol.

    Raises:
        ValueError: If one is missing or is not callable where it should be; names it, the class and the config's `key`.
    """
    missing = [name for name, is_method in members(protocol).items() if not _has(value, name, is_method)]
    if missing:
        raise ValueError(
            f"{key}: {_name(value)} lacks {', '.join(missing)} of {protocol.__module__}.{protocol.__qualname__}: "
            "define them, or choose another target"
        )


def require_whole_protocols(value: object, protocols: Sequence[type], key: str) -> None:
    """Checks that an object which has one member of a protocol has all of them.

    Raises:
        ValueError: As `require_members`.
    """
    for protocol in protocols:
        if any(hasattr(value, name) for name in members(protocol)):
            require_members(value, protocol, key)


def members(protocol: type) -> Mapping[str, bool]:
    """The public members of a protocol: whether each is a method."""
    own = {name: callable(member) for name, member in vars(protocol).items() if not name.startswith("_")}
    return dict.fromkeys(vars(protocol).get("__annotations__", {}), False) | own


def _has(value: object, name: str, is_method: bool) -> bool:
    return hasattr(value, name) and (not is_method or callable(getattr(value, name)))


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
