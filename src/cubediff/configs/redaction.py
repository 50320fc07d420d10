"""Removes passwords and tokens from what Hydra writes about a job."""

from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from cubediff.utils.files import write_atomic
from cubediff.utils.text import redact


class RedactSecrets(Callback):
    """Redacts .hydra/*.yaml of a job when it starts, its overrides when it fails, and multirun.yaml of a sweep."""

    def on_job_start(self, config: DictConfig, **kwargs: object) -> None:
        hydra = config.hydra
        folder = Path(hydra.runtime.output_dir) / str(hydra.output_subdir)
        _redact_files([*folder.glob("*.yaml"), Path(hydra.sweep.dir) / "multirun.yaml"])

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: object) -> None:
        """Hydra prints the overrides of a job that fails."""
        job_return.overrides = [redact(override) for override in job_return.overrides or ()]

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        _redact_files([Path(config.hydra.sweep.dir) / "multirun.yaml"])


def _redact_files(files: list[Path]) -> None:
    for file in files:
        if file.is_file():
            content = file.read_text(encoding="utf-8")
            if (redacted := redact(content)) != content:
                write_atomic(file, redacted)
