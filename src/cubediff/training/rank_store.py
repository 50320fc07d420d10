"""A key-value store that all ranks of a run share, next to their process group."""

from __future__ import annotations

import os
from datetime import timedelta

import lightning as L
from torch._C._distributed_c10d import Store, TCPStore  # torch.distributed's stubs do not export them


def connect_store(trainer: L.Trainer, purpose: str, remedy: str) -> Store:
    """Connects this rank to a new store, which rank 0 serves; collective, on every rank.

    Args:
        trainer: Its process group must exist.
        purpose, remedy: For the error message: what the store serves, and what else the user can do.

    Raises:
        ValueError: If this rank cannot reach rank 0.
    """
    host = os.environ["MASTER_ADDR"]
    server = _new_store(host, 0, is_master=True) if trainer.is_global_zero else None
    port = trainer.strategy.broadcast(server.port if server else 0)
    try:
        return server or _new_store(host, port, is_master=False)
    except RuntimeError as error:
        raise ValueError(
            f"rank {trainer.global_rank} cannot reach {purpose} at {host}:{port} ({error}): open the ports between "
            f"the machines{remedy}"
        ) from error


def _new_store(host: str, port: int, is_master: bool) -> TCPStore:
    return TCPStore(host, port, is_master=is_master, wait_for_workers=False, timeout=timedelta(seconds=10))
