"""Says before a GPU is rented whether a run fits and what it takes: python -m cubediff.plan experiment=sd15_l4x4."""

import sys

from omegaconf import DictConfig

from cubediff.configs.overrides import command
from cubediff.planning.report import report


@command("plan")
def main(config: DictConfig) -> None:
    try:
        print(report(config))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
