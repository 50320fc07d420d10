"""The console script `cubediff COMMAND …`, which runs a command's module as `python -m cubediff.COMMAND …` does.

The module becomes `__main__`: Lightning's launcher and joblib start their child processes from `__main__.__spec__`, so
children run the same command.
"""

import runpy
import sys
from difflib import get_close_matches
from typing import Final

COMMANDS: Final = {
    "prepare": "build WebDataset shards from panoramas and captions; `prepare check` verifies them",
    "cache": "encode shards into latents, to train without the encoders",
    "plan": "estimate memory, time and cost of a training run",
    "train": "train a model; Hydra overrides set its config",
    "generate": "generate panoramas from text and photos with a trained model",
    "evaluate": "measure generated panoramas: consistency, distances to real ones, fidelity",
    "convert": "convert panoramas, cubemaps of engines and views into each other",
    "view": "write a page to look around in any panorama or cubemap",
    "sweep-report": "compare the runs of a sweep in a table and an HTML page",
    "dashboard": "create the Weights & Biases workspace for the training metrics",
    "example": "write procedural panoramas with captions, to try the other commands on",
}
_MODULES = {"example": "data.example"}  # others are named as their command
_WIDTH = max(map(len, COMMANDS))

HELP: Final = "\n".join(
    [
        "usage: cubediff COMMAND [ARGUMENT …]",
        "       cubediff COMMAND --help",
        "",
        "Panorama diffusion on the six faces of a cube (CubeDiff, arXiv 2501.17162).",
        "",
        "commands:",
        *(f"  {name:{_WIDTH}}  {summary}" for name, summary in COMMANDS.items()),
        "",
        "options:",
        f"  {'--help':{_WIDTH}}  show this text",
        f"  {'--version':{_WIDTH}}  show the version",
    ]
)


def main() -> None:
    """Runs the command that the first argument of the process names."""
    first, *arguments = sys.argv[1:] or ["--help"]
    if first in ("-h", "--help"):
        print(HELP)
        return
    if first == "--version":
        from cubediff import __version__

        print(f"cubediff {__version__}")
        return
    command = first.replace("_", "-")
    if command not in COMMANDS:
        nearest = get_close_matches(command, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        print(f"error: unknown command {first!r}: {hint}`cubediff --help` lists the commands", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = arguments
    module = _MODULES.get(command, command.replace("-", "_"))
    runpy.run_module(f"cubediff.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
