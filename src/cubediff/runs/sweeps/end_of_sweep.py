"""The summary that a sweep prints: how many jobs are done, and which are not."""

import sys
from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from cubediff.runs.sweeps.results import RESULT, read_results
from cubediff.utils.text import error_line


class Summary(Callback):
    """Prints at the end of a sweep which jobs are not done, and exits with code 1 if there are any."""

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            results = read_results(folder)
        except ValueError as error:
            sys.exit(error_line(error))
        if not results:
            return
        unfinished = {job: result for job, result in results.items() if result.status != "done"}
        print(
            f"sweep: {len(results) - len(unfinished)} of {len(results)} jobs done; `cubediff sweep-report {folder}` "
            "compares them"
        )
        if unfinished:
            names = ", ".join(f"{job.name} ({result.status})" for job, result in unfinished.items())
            print(f"not done: {names}; the error of each is in its {RESULT}", file=sys.stderr)
            sys.exit(1)
