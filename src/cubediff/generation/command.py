"""What `cubediff generate` does: checks jobs, finds those that are left, and samples this process's share of them.

torch is imported only to sample: invalid input is reported, and a call whose jobs are all done ends, without it.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cubediff.generation.existing import pending_jobs
from cubediff.generation.jobs import GALLERY, Job, raise_errors, unusable_files
from cubediff.generation.options import Execution
from cubediff.generation.records import RECORD
from cubediff.pages.gallery import Item, write_gallery
from cubediff.pipelines.folders import check_folder
from cubediff.utils.ranks import torchrun_rank
from cubediff.utils.text import printable


@dataclass(frozen=True)
class Call:
    """A call of the command.

    Attributes:
        model: CubeDiff folder or Hub id.
        output: Folder to write to; a job's files are in its subfolder `job.name`.
        jobs: The panoramas to generate. If they have names, those that exist already are skipped, and a gallery page
            shows all of them.
        execution: Batch size, device and dtype.
    """

    model: str
    output: Path
    jobs: Sequence[Job]
    execution: Execution


def run(call: Call) -> Iterator[Path]:
    """Generates the panoramas of a call, under torchrun those of this process.

    Yields:
        The paths of written files and folders.

    Raises:
        ValueError: If a job, the model, the device or a setting is invalid, an existing panorama was generated with
            other settings, or the memory is too small.
        OSError: If a file cannot be read or written.
        FloatingPointError: If a value is not finite in sampling.
    """
    rank, processes = torchrun_rank()
    named = any(job.name for job in call.jobs)
    _check_output(call.output)
    check_folder(call.model)
    pending = list(call.jobs)
    if named:
        request = {"model": call.model, **call.execution.request}
        pending = pending_jobs(call.jobs, call.output, request)
        if rank == 0:
            count = len(call.jobs)
            print(f"{count - len(pending)} of {count} panoramas exist already", file=sys.stderr)
    _check_photos(pending, announce=rank == 0)
    own = make_batches(call.jobs, call.execution.batch)[rank::processes]
    left = {job.name for job in pending}
    is_busy = any(job.name in left for batch in own for job in batch)
    if is_busy:
        from cubediff.generation.run import generate  # loads torch

        yield from generate(call.model, call.output, own, left, call.execution)
    # The process that ends last sees all panoramas: it writes the page, and no process waits for another.
    if named and (is_busy or rank == 0) and all((call.output / job.name / RECORD).is_file() for job in call.jobs):
        yield write_gallery(call.output / GALLERY, [_item(job) for job in call.jobs])


def make_batches(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Consecutive jobs that the pipeline samples in the same way, at most `size` at once.

    They depend on all jobs, not on those that are left: rounding differs with a batch's composition, so any number of
    processes, also after an interruption, generates the same files.
    """
    batches: list[list[Job]] = []
    for _, group in groupby(jobs, key=_sampled_alike):
        alike = list(group)
        batches += (alike[start : start + size] for start in range(0, len(alike), size))
    return batches


def _sampled_alike(job: Job) -> object:
    """Equal for jobs that one call of the pipeline can sample."""
    edited = job.name if job.panorama is not None else None  # alone, because sizes may differ
    return job.options.arguments, job.options.sampler, job.prompt is None, not job.photos, edited


def _check_output(output: Path) -> None:
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"--output {output}: {existing} is a file: choose a folder")


def _check_photos(jobs: Sequence[Job], announce: bool) -> None:
    """Raises ValueError with all photos and panoramas that cannot be used; prints the photos' fields of view."""
    raise_errors(unusable_files(jobs))
    fovs = {file: fov for job in jobs for file, fov in job.exif_fovs().items()}
    for file, fov in fovs.items() if announce else ():
        print(f"{printable(file)}: field of view {fov:.1f}° by its EXIF data", file=sys.stderr)


def _item(job: Job) -> Item:
    """The job's entry of the gallery."""
    return Item(job.name, f"panorama.{job.format}", job.text, f"seed {job.seed}")
