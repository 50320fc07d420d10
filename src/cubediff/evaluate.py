"""Evaluates a model or panoramas: cubediff evaluate pipeline=MODEL reference=PANORAMAS output=DIR, or samples=FOLDER in
place of pipeline=MODEL."""

import sys

from omegaconf import DictConfig

from cubediff.configs.overrides import command
from cubediff.utils.errors import storage_message
from cubediff.utils.ranks import is_first_rank
from cubediff.utils.signals import Stopped
from cubediff.utils.text import error_line


@command("evaluate")
def main(config: DictConfig) -> None:
    """Evaluates and prints the path of the report; exits with the message of an error that the user can fix."""
    from cubediff.runs.evaluation.run import evaluate  # here for start-up time

    try:
        report = evaluate(config)
    except (ValueError, FloatingPointError) as error:
        sys.exit(error_line(error))
    except OSError as error:
        sys.exit(error_line(storage_message(error)))
    except Stopped as stop:
        if is_first_rank():
            print(f"stopped by a signal: the same command goes on in {config.output}", file=sys.stderr)
        raise stop
    if report is not None:
        print(report)


if __name__ == "__main__":
    main()
