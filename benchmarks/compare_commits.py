"""Compares two checkouts of cubediff bit by bit, for a change that must not change behaviour.

    python benchmarks/compare_commits.py OLD NEW [--old-results FOLDER] [--new-results FOLDER] [--only CASE …]

Runs the same commands in both checkouts with one thread: shards, a latent cache, a training run, a sweep of 16 jobs and
generated panoramas. Then NEW streams, resumes, loads and continues what OLD wrote, and must arrive at OLD's results.
Results of OLD in --old-results are reused if they were made at the same commit. Prints a table; exits with 1 on a
difference.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file

CAPTIONS = "data/samples/captions.jsonl"
MODEL = "experiments/cubediff_tiny/model"
PROMPT = "Dewy grass meadow at sunrise with strong golden sun and long shadows"
SAMPLING = ("--steps", "3", "--seed", "1", "--save-faces")
TRAINING = (
    "experiment=tiny_cpu",
    "trainer.val_check_interval=10",
    "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every_n_steps=10",
    "callbacks.samples.steps=2",
)
JOB = ("data.batch_size=2", "trainer.max_steps=3", "trainer.log_every_n_steps=1", "callbacks.samples=null")

# Wording, times and paths, which may differ.
IGNORED_FILES = {".html", ".yaml", ".txt", ".lock", ".log"}
IGNORED_KEYS = {"started", "seconds", "git", "versions", "overrides"}
# Lightning counts the epoch that a run was interrupted in once more when it resumes.
IGNORED_KEYS |= {"epoch_progress"}
IGNORED_COLUMNS = "perf/"


@dataclass
class Checkout:
    """A source tree, and the folder that its results go to."""

    source: Path
    results: Path
    log: str = field(default="log.txt", repr=False)

    @property
    def commit(self) -> str:
        """The commit, followed by a digest of uncommitted changes if there are any."""
        git = ["git", "-C", str(self.source)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        changes = subprocess.run([*git, "diff", "HEAD"], check=True, capture_output=True).stdout
        return head + (f"+{hashlib.sha256(changes).hexdigest()[:8]}" if changes else "")

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts `python -m cubediff.MODULE` in the checkout with one thread."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.source / "src")}
        with (self.results / self.log).open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"cubediff.{module}", *arguments],
                cwd=self.source,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def run(self, module: str, *arguments: str) -> str:
        """Runs a command to its end and returns what it printed. Raises RuntimeError if it fails."""
        process = self.start(module, *arguments)
        output = process.communicate()[0].decode()
        if process.returncode:
            tail = (self.results / self.log).read_text()[-3000:]
            raise RuntimeError(f"cubediff.{module} {' '.join(arguments)} in {self.source} failed:\n{output}\n{tail}")
        return output

    def renamed_targets(self) -> dict[str, str]:
        """The `_target_`s that the checkout accepts under old names, by old name."""
        code = "import json; from cubediff.configs.targets import RENAMED; print(json.dumps(RENAMED))"
        environment = {**os.environ, "PYTHONPATH": str(self.source / "src")}
        command = [sys.executable, "-c", code]
        printed = subprocess.run(command, env=environment, cwd=self.source, check=True, capture_output=True, text=True)
        names: dict[str, str] = json.loads(printed.stdout)
        return names


# ---- what both checkouts do: each case writes to results/CASE ---------------------------------------------------


def shards(checkout: Checkout, old: Path) -> None:
    output = str(checkout.results / "shards")
    checkout.run("prepare", "data/samples", output, "--captions", CAPTIONS, "--val-fraction", "0.2")


def cache(checkout: Checkout, old: Path) -> None:
    output = checkout.results / "cache"
    words = (f"data.path={old}/shards", f"cache.output={output}", "cache.turns=2")
    checkout.run("cache", "experiment=tiny_cpu", *words)


def train(checkout: Checkout, old: Path) -> None:
    _train(checkout, old, checkout.results / "train", 20)


def sweep(checkout: Checkout, old: Path) -> None:
    output = checkout.results / "sweep"
    checkout.run("train", "-m", "experiment=tiny_sweep", *JOB, f"data.path={old}/shards", f"run_dir={output}")


def latents(checkout: Checkout, old: Path) -> None:
    output = checkout.results / "latents"
    checkout.run("train", "experiment=tiny_cpu", "data=latents", *JOB, f"data.path={old}/cache", f"run_dir={output}")


def generate(checkout: Checkout, old: Path) -> None:
    output = checkout.results / "generate"
    checkout.run("generate", "--model", MODEL, "--prompt", PROMPT, "--output", f"{output}/text", *SAMPLING)
    checkout.run("generate", "--model", MODEL, "--image", "data/photo.jpg", "--output", f"{output}/photo", *SAMPLING)


def generate_from_export(checkout: Checkout, old: Path) -> None:
    output = checkout.results / "generate_from_export"
    export = f"{old}/train/export"
    checkout.run("generate", "--model", export, "--prompt", PROMPT, "--output", str(output), *SAMPLING)


def plan(checkout: Checkout, old: Path) -> None:
    """Keeps the decimal numbers of the plan of SD 1.5, whose words may differ."""
    output = checkout.run("plan", "experiment=sd15_l4x4")
    folder = checkout.results / "plan"
    folder.mkdir(parents=True)
    (folder / "numbers.json").write_text(json.dumps(re.findall(r"\d+\.\d+", output)))


def small_sweep(checkout: Checkout, old: Path) -> None:
    _sweep(checkout, old, checkout.results / "small_sweep")


# ---- what OLD leaves half done, and NEW continues ---------------------------------------------------------------


def half_train(checkout: Checkout, old: Path) -> None:
    _train(checkout, old, checkout.results / "half_train", 10)


def half_sweep(checkout: Checkout, old: Path) -> None:
    """Kills a sweep of three jobs after its first one."""
    output = checkout.results / "half_sweep"
    process = checkout.start("train", *_sweep_words(old, output))
    first, second = output / "0" / "result.json", output / "1" / "result.json"
    deadline = time.monotonic() + 600
    while not (second.exists() and json.loads(first.read_text())["status"] == "done"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the sweep in {output} ended before it could be interrupted")
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def resume_train(checkout: Checkout, old: Path) -> None:
    output = checkout.results / "resume_train"
    shutil.copytree(old / "half_train", output, symlinks=True)
    _train(checkout, old, output, 20)


def resume_sweep(checkout: Checkout, old: Path) -> None:
    output = checkout.results / "resume_sweep"
    shutil.copytree(old / "half_sweep", output, symlinks=True)
    first = output / "0" / "result.json"
    before = first.read_bytes()
    _sweep(checkout, old, output)
    if first.read_bytes() != before:
        raise RuntimeError(f"the finished job in {first.parent} was run again")


def _train(checkout: Checkout, old: Path, output: Path, steps: int) -> None:
    checkout.run("train", *TRAINING, f"data.path={old}/shards", f"run_dir={output}", f"trainer.max_steps={steps}")


def _sweep_words(old: Path, output: Path) -> tuple[str, ...]:
    objectives = "objective=paper,v_prediction,min_snr"
    return ("-m", "experiment=tiny_cpu", *JOB, objectives, f"data.path={old}/shards", f"run_dir={output}")


def _sweep(checkout: Checkout, old: Path, output: Path) -> None:
    checkout.run("train", *_sweep_words(old, output))


@dataclass(frozen=True)
class Case:
    """A claim that two folders hold the same: OLD writes one by `expected`, NEW the other by `actual`.

    The folders are named after the functions.
    """

    claim: str
    expected: Callable[[Checkout, Path], None]
    actual: Callable[[Checkout, Path], None]


OLD_ONLY = (half_train, half_sweep)
CASES = (
    Case("shards of data/samples", shards, shards),
    Case("latent cache of OLD's shards", cache, cache),
    Case("tiny_cpu, 20 steps on OLD's shards", train, train),
    Case("tiny_sweep, 16 jobs of 3 steps", sweep, sweep),
    Case("3 steps on OLD's latent cache", latents, latents),
    Case("panoramas from a text and from a photo", generate, generate),
    Case("a panorama from OLD's export", generate_from_export, generate_from_export),
    Case("numbers of the plan of sd15_l4x4", plan, plan),
    Case("OLD's checkpoint of step 10, resumed to 20", train, resume_train),
    Case("OLD's sweep, killed after its first job", small_sweep, resume_sweep),
)


# ---- comparison -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Reads results without values that may differ between checkouts: paths, times, wording, renamed targets."""

    root: Path
    renamed: dict[str, str]

    def read(self, file: Path) -> object:
        """The content of a file as nested containers of tensors and plain values."""
        if file.suffix == ".ckpt":
            content: object = torch.load(file, weights_only=True, map_location="cpu")
        elif file.suffix == ".safetensors":
            content = load_file(file)
        elif file.suffix == ".json":
            content = json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".csv":
            with file.open(encoding="utf-8", newline="") as opened:
                content = [{k: v for k, v in row.items() if IGNORED_COLUMNS not in k} for row in csv.DictReader(opened)]
        elif file.suffix in (".jpg", ".png"):
            content = torch.from_numpy(np.asarray(cv2.imread(str(file), cv2.IMREAD_UNCHANGED)))
        else:
            content = file.read_bytes()
        return self._comparable(content)

    def _comparable(self, content: object) -> object:
        if isinstance(content, dict):
            return {k: self._comparable(v) for k, v in content.items() if k not in IGNORED_KEYS}
        if isinstance(content, list | tuple):
            return [self._comparable(value) for value in content]
        if isinstance(content, str):
            return self.renamed.get(content, content).replace(str(self.root), "RESULTS")
        return content


def differences(old: object, new: object, where: str = "") -> list[str]:
    """The paths at which two contents differ; tensors must be equal in every bit, NaN included."""
    if type(old) is not type(new):
        return [f"{where}: {type(old).__name__} and {type(new).__name__}"]
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        if old.dtype != new.dtype or old.shape != new.shape:
            return [f"{where}: {old.dtype} {tuple(old.shape)} and {new.dtype} {tuple(new.shape)}"]
        same = old.contiguous().numpy().tobytes() == new.contiguous().numpy().tobytes()
        return [] if same else [f"{where}: up to {(old.double() - new.double()).abs().max():g} apart"]
    if isinstance(old, dict) and isinstance(new, dict):
        found = [f"{where}: only OLD has {key}" for key in old.keys() - new.keys()]
        found += [f"{where}: only NEW has {key}" for key in new.keys() - old.keys()]
        return found + [d for key in old if key in new for d in differences(old[key], new[key], f"{where}/{key}")]
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return [f"{where}: length {len(old)} and {len(new)}"]
        return [d for i, (x, y) in enumerate(zip(old, new, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    return [] if old == new else [f"{where}: {str(old)[:100]} and {str(new)[:100]}"]


def compare(old: Path, new: Path, renamed: dict[str, str]) -> tuple[int, list[str]]:
    """The number of files compared, and the differences."""
    names = [_names(folder) for folder in (old, new)]
    found = [f"{name}: only in OLD" for name in sorted(names[0] - names[1])]
    found += [f"{name}: only in NEW" for name in sorted(names[1] - names[0])]
    both = sorted(names[0] & names[1])
    for name in both:
        before, after = (Reader(folder, renamed).read(folder / name) for folder in (old, new))
        found += differences(before, after, name)
    return len(both), found


def _names(folder: Path) -> set[str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix not in IGNORED_FILES)
    return {str(file.relative_to(folder)) for file in files}


# ---- the script -------------------------------------------------------------------------------------------------


def make(checkout: Checkout, function: Callable[[Checkout, Path], None], old: Path) -> None:
    """Runs a case unless its results are there already."""
    mark = checkout.results / f"{function.__name__}.commit"
    if mark.exists() and mark.read_text() == checkout.commit:
        return
    mark.unlink(missing_ok=True)
    shutil.rmtree(checkout.results / function.__name__, ignore_errors=True)
    started = time.monotonic()
    print(f"{function.__name__} in {checkout.source}", end=" ", flush=True, file=sys.stderr)
    function(checkout, old)
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    mark.write_text(checkout.commit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="source checkout to compare with")
    parser.add_argument("new", type=Path, help="source checkout to test")
    parser.add_argument("--old-results", type=Path, help="folder that keeps OLD's results for the next comparison")
    parser.add_argument("--new-results", type=Path, help="folder to keep NEW's results in; must be empty or absent")
    parser.add_argument("--only", nargs="+", metavar="CASE", default=[], choices=[c.actual.__name__ for c in CASES])
    parser.add_argument("--old-only", action="store_true", help="only fill --old-results")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folders = [args.old_results or Path(temporary, "old"), args.new_results or Path(temporary, "new")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        if any(folders[1].iterdir()):
            parser.error(f"{folders[1]} is not empty: choose another --new-results")
        old, new = (
            Checkout(source.resolve(), folder.resolve())
            for source, folder in zip((args.old, args.new), folders, strict=True)
        )
        cases = [case for case in CASES if not args.only or case.actual.__name__ in args.only]
        # Later cases read what earlier ones of OLD wrote.
        for function in dict.fromkeys((shards, cache, train, *OLD_ONLY, *(case.expected for case in cases))):
            make(old, function, old.results)
        if args.old_only:
            return
        sys.exit(1 if report(cases, old, new) else 0)


def report(cases: list[Case], old: Checkout, new: Checkout) -> int:
    """Runs NEW, prints the table and returns the number of differences."""
    print(f"OLD {old.commit} {old.source}\nNEW {new.commit} {new.source}\n")
    print("| case | files | differences |\n|---|---|---|", flush=True)
    listed: list[str] = []
    renamed = new.renamed_targets()
    for case in cases:
        try:
            make(new, case.actual, old.results)
        except RuntimeError as error:
            count, found = 0, [str(error)]
        else:
            expected, actual = old.results / case.expected.__name__, new.results / case.actual.__name__
            count, found = compare(expected, actual, renamed)
            found += [] if count else ["no file was compared"]
        print(f"| {case.claim} | {count} | {len(found) or 'none'} |", flush=True)
        listed += [f"{case.actual.__name__}: {difference}" for difference in found[:20]]
    print("", *listed, sep="\n")
    return len(listed)


if __name__ == "__main__":
    main()
