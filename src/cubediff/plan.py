"""Estimates memory, time and disk space of a run before it starts: cubediff plan experiment=sd15_l4x4."""

import sys

from omegaconf import DictConfig

from cubediff.configs.overrides import command
from cubediff.utils.text import error_line


@command("plan")
def main(config: DictConfig) -> None:
    """Prints the plan of a run."""
    from cubediff.planning.report import report  # start-up time

    try:
        print(report(config))
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))


if __name__ == "__main__":
    main()
