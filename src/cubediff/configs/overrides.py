"""Hydra command lines with hints: how to write an argument, the nearest key for an unknown one, a plugin's extra."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path

import hydra
import hydra._internal.utils as hydra_utils
from hydra._internal.utils import get_args_parser
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig

from cubediff.configs import CONFIG_DIR
from cubediff.utils.ranks import is_first_rank, is_started_by_first_rank
from cubediff.utils.signals import Stopped, stop_signals
from cubediff.utils.text import error_line

# Hydra's plugins of the extra "sweep".
PLUGINS = (
    "hydra/launcher/joblib",
    "hydra/launcher/submitit_slurm",
    "hydra/launcher/submitit_local",
    "hydra/sweeper/optuna",
)
# What Hydra would list in a help too: the configs that other choices are made from, and the group of another command.
_NO_CHOICES = {"model": ("base",), "optimizer": ("base",)}
_NO_GROUPS = ("evaluation",)
_MIN_SIMILARITY = 0.7  # of a suggested key, in [0, 1]


def command(config_name: str) -> Callable[[Callable[[DictConfig], object]], Callable[[], None]]:
    """Decorates a task as a command line with the config conf/`config_name`.yaml, as `hydra.main` does.

    SIGTERM, SIGHUP and Ctrl-C raise `cubediff.utils.signals.Stopped`, which determines the exit code.
    """

    def decorate(task: Callable[[DictConfig], object]) -> Callable[[], None]:
        start = hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=config_name)(task)

        def main() -> None:
            sys.argv[1:] = options_first(sys.argv[1:])
            if message := argument_message(sys.argv[1:]):
                sys.exit(error_line(message))
            try:
                with stop_signals(), _errors_in_one_line(), _help_without_unusable_choices():
                    start()
            except SystemExit as end:
                if isinstance(end, Stopped) and is_started_by_first_rank():
                    sys.exit(0)
                # Hydra exits while it handles the error that it has printed.
                if isinstance(end.__context__, Exception) and (hint := error_hint(end.__context__)):
                    print(hint, file=sys.stderr)
                raise

        return main

    return decorate


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Hydra prints a traceback if it cannot create the output folder, and its parser's words for an argument."""
    hydras, name = vars(hydra_utils), "run_and_report"
    report = hydras[name]

    def report_in_one_line(action: Callable[[], object]) -> object:
        def act() -> object:
            try:
                return action()
            except (OSError, OverrideParseException, ConfigCompositionException) as error:
                message = error if isinstance(error, OSError) else override_message(error)
                if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                    raise
                sys.exit(error_line(message))

        reported: object = report(act)
        return reported

    hydras[name] = report_in_one_line
    try:
        yield
    finally:
        hydras[name] = report


@contextmanager
def _help_without_unusable_choices() -> Iterator[None]:
    """Hydra lists every file of conf/ as a choice of its group."""
    from hydra._internal.hydra import Hydra  # start-up time

    name = "format_config_groups"
    listing = getattr(Hydra, name)

    def usable(hydra: Hydra, predicate: Callable[[str], bool], compact: bool = True) -> str:
        """The groups, one per line, as `GROUP: CHOICE, CHOICE`."""
        lines = []
        for line in str(listing(hydra, predicate, compact)).splitlines():
            group, _, choices = line.partition(": ")
            kept = [choice for choice in choices.split(", ") if choice not in _NO_CHOICES.get(group, ())]
            if group not in _NO_GROUPS:
                lines.append(f"{group}: {', '.join(kept)}\n")
        return "".join(lines)

    setattr(Hydra, name, usable)
    try:
        yield
    finally:
        setattr(Hydra, name, listing)


@contextmanager
def messages_of_errors(when_stopped: str) -> Iterator[None]:
    """Exits with the message alone of an error that the user can fix; HYDRA_FULL_ERROR=1 shows the traceback.

    Args:
        when_stopped: What to say after a signal: how to go on.
    """
    try:
        yield
    except (ValueError, FloatingPointError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.exit(error_line(error))
    except Stopped:
        if is_first_rank():
            print(f"stopped by a signal: {when_stopped}", file=sys.stderr)
        raise


def options_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with the options, such as -m, before the overrides: Hydra's parser reads them in one place only."""
    options = get_args_parser()._option_string_actions
    first, others, left = list[str](), list[str](), list(arguments)
    while left:
        argument = left.pop(0)
        (first if argument.startswith("-") else others).append(argument)
        if argument in options and options[argument].nargs is None and left:
            first.append(left.pop(0))
    return first + others


def argument_message(arguments: Sequence[str]) -> str | None:
    """What to write in place of an argument that Hydra takes for something else; None if there is none.

    It takes --experiment for short for its --experimental-rerun, and an empty run_dir for the working directory.
    """
    options = get_args_parser()._option_string_actions
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        option, equals, value = argument.partition("=")
        key = option.removeprefix("--")
        if key == "run_dir" and equals and value.strip("'\"") in ("", "null"):
            return f"{argument}: name the folder of the run, or omit run_dir for a new one"
        is_short = any(name.startswith(option) for name in options)
        if option.startswith("--") and option not in options and (key in _groups() or not is_short):
            if not equals:
                value = following if following and not following.startswith("-") and "=" not in following else "VALUE"
            return f"{option} is no option of this command: write {key}={value} without dashes; --help lists the keys"
    return None


def override_message(error: Exception) -> str | None:
    """What to write in place of an argument that Hydra's grammar does not read as one value, None for other errors."""
    ambiguous = re.match("Ambiguous value for argument '(.*)'\n", str(error))
    if isinstance(error, OverrideParseException):
        argument, choices = error.override, ""
    elif ambiguous:
        argument, choices = ambiguous[1], "; or add --multirun for one run per value, or write [A,B] for a list"
    else:
        return None
    key, equals, value = argument.partition("=")
    if not equals:
        return f"{argument}: expected key=value"
    if value[:1] in ("[", "{"):
        return f"{argument}: quote the texts inside the brackets for Hydra and all for the shell: \"{key}=['A', 'B']\""
    text = value.replace("'", "\\'")
    quoted = re.sub(r'([\\"$`])', r"\\\1", f"{key}='{text}'")
    return f'{argument}: quote a value with special characters for Hydra and for the shell: "{quoted}"{choices}'


def error_hint(error: Exception) -> str | None:
    """A remedy for an error of Hydra's config composition, None if there is none."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file in PLUGINS:
        return f"{error.missing_cfg_file} is not installed: pip install 'cubediff[sweep]'"
    parent = getattr(error.__cause__, "parent_node", None)
    if not isinstance(error, ConfigCompositionException) or parent is None:
        return None
    unknown = str(error).split("'")[1]  # Could not override 'KEY'.
    nearest = nearest_key(unknown, {*_groups(), *_keys(parent._get_root())})
    return f"did you mean {nearest}?" if nearest else None


def _groups() -> set[str]:
    return {folder.name for folder in Path(CONFIG_DIR).iterdir() if folder.is_dir()}


def nearest_key(unknown: str, keys: set[str]) -> str | None:
    """The key most similar to `unknown`, by the last component and then by the full key; None if none is similar."""

    def similarity(key: str) -> tuple[float, float]:
        last_parts = key.rpartition(".")[2], unknown.rpartition(".")[2]
        return SequenceMatcher(None, *last_parts).ratio(), SequenceMatcher(None, key, unknown).ratio()

    best = max(sorted(keys), key=similarity)
    return best if similarity(best)[0] >= _MIN_SIMILARITY else None


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """All keys, dotted; values stay unresolved, since Hydra's own references resolve inside a job only."""
    for key in map(str, config):
        yield f"{prefix}{key}"
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from _keys(node, f"{prefix}{key}.")
