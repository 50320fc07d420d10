"""Estimates memory, time and disk space of a run before it starts: cubediff plan experiment=sd15_l4x4."""

import sys

from omegaconf import DictConfig

from cubediff.configs.overrides import command, messages_of_errors


@command("plan")
def main(config: DictConfig) -> None:
    """Prints the plan of a run; exits with 1 if it fits into the memory of its devices in no way."""
    from cubediff.planning.report import plan  # start-up time

    with messages_of_errors("nothing was written"):
        planned = plan(config)
    print(planned.text)
    if not planned.fits:
        sys.exit(1)


if __name__ == "__main__":
    main()
