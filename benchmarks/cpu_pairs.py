"""Compares training steps and generation with a plain implementation and with an earlier checkout, on one CPU thread.

    python benchmarks/cpu_pairs.py OLD [--rounds N] [--only CASE …]

OLD is a checkout of cubediff. Every program has its own process with one thread; in each round they take turns at one
training step, or at one panorama of 20 steps. The plain implementation is stock diffusers with attention over six
faces, as in `public_layout.py`; it trains in a plain loop, without synchronized group norms. Times are CPU seconds. Our
training steps and those of OLD contain the loading of their panoramas, plain ones do not. A ratio is the other
program's time divided by ours in the same round; above 1, ours is faster.
"""

import argparse
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "experiments/tiny_sd/model"  # that both checkouts have
STEPS, BATCH, FACE = 20, 2, 128
MATMUL = 2048  # rows
WARM_UP = 4  # rounds that are not counted
PROMPT = "a bright hall with wooden floors"
TRAINING = (
    "experiment=tiny_cpu",
    "model.trainable=full",
    f"data.batch_size={BATCH}",
    "trainer.max_steps=1000",
    "callbacks.ema=null",
    "callbacks.samples=null",
    "callbacks.checkpoint=null",
)
CASES = ("train", "train from latents", "generate, public layout, from a photo", "generate, tiny_sd, from text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    args = parser.parse_args()
    old = args.old.resolve()
    commit = subprocess.run(["git", "-C", str(old), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(f"torch {torch.__version__}, one thread, {args.rounds} rounds; OLD is {commit.stdout.strip() or old}")
    print("| case | program | seconds | / ours (quartiles) | / ours, compiled |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if any(case.startswith("train") for case in args.only):
            prepare(old, folder)
        for case in args.only:
            compare(case, programs(case, old, folder), args.rounds)


def prepare(old: Path, folder: Path) -> None:
    """Has OLD write the shards and latents that both checkouts train on."""
    samples = ("data/samples", f"{folder}/shards", "--captions", "data/samples/captions.jsonl", "--val-fraction", "0")
    latents = ("experiment=tiny_cpu", f"data.path={folder}/shards", "cache.turns=1")
    commands = (("prepare", *samples), ("cache", *latents, f"cache.output={folder}/latents"))
    for name, *words in commands:
        command = [sys.executable, "-m", f"cubediff.{name}", *words]
        process = subprocess.run(command, cwd=old, env=environment(old), capture_output=True, text=True)
        if process.returncode:
            sys.exit(process.stderr)


def environment(tree: Path | str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tree}/src"}


def programs(case: str, old: Path, folder: Path) -> dict[str, list[str]]:
    """Command lines of workers by name; the first is the reference of the ratios, and "ours, compiled" comes last."""
    if not case.startswith("train"):
        layout = "tiny" if "tiny" in case else "public"
        plain = {} if layout == "tiny" else {"plain": [str(ROOT), "generate-plain"]}
        theirs = {**plain, "OLD": [str(old), f"generate-{layout}"]}
        return {"ours": [str(ROOT), f"generate-{layout}"], **theirs, "matmul": [str(ROOT), "matmul"]}
    data = f"data.path={folder}/shards"
    if case == "train from latents":
        data = f"data=latents data.path={folder}/latents data.num_workers=0"
    words = [*TRAINING, *data.split()]
    return {
        "ours": [str(ROOT), "train", *words, f"run_dir={folder}/ours"],
        "plain": [str(ROOT), "train-plain" if case == "train" else "train-plain-latents"],
        "OLD": [str(old), "train", *words, f"run_dir={folder}/old"],
        "ours, compiled": [str(ROOT), "train", *words, f"run_dir={folder}/compiled", "model.compile=regional"],
    }


def compare(case: str, commands: dict[str, list[str]], rounds: int) -> None:
    """Lets the workers take turns and prints a row for each."""
    workers = {name: start(command) for name, command in commands.items()}
    laps: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(-WARM_UP, rounds):
        for name, worker in workers.items():
            seconds = turn(worker)
            if number >= 0:
                laps[name].append(seconds)
    for worker in workers.values():
        worker.kill()
        worker.wait()
    if "matmul" in laps:
        share(case, laps)
    for name, seconds in laps.items():
        cells = [_ratio(seconds, laps[other]) if other in laps else "" for other in ("ours", "ours, compiled")]
        print(f"| {case} | {name} | {statistics.median(seconds):.3f} | {' | '.join(cells)} |", flush=True)


def _ratio(other: list[float], ours: list[float]) -> str:
    low, median, high = statistics.quantiles([a / b for a, b in zip(other, ours, strict=True)], n=4)
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


def share(case: str, laps: dict[str, list[float]]) -> None:
    """Prints the operations that our call does and its share of the rate of a large matrix product."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        (tiny_generation if "tiny" in case else public_generation)()()
    operations = counter.get_total_flops()
    rates = [2 * MATMUL**3 / seconds for seconds in laps.pop("matmul")]
    shares = [operations / seconds / rate for seconds, rate in zip(laps["ours"], rates, strict=True)]
    print(
        f"| {case} | {operations / 1e9:.0f} GFLOP at {statistics.median(shares):.0%} of the "
        f"{statistics.median(rates) / 1e9:.0f} GFLOP/s of a matrix product | | | |"
    )


def start(command: list[str]) -> "subprocess.Popen[str]":
    tree, *words = command
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", *words],
        cwd=tree,
        env=environment(tree),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if "DEBUG" not in os.environ else None,
        text=True,
    )


def turn(worker: "subprocess.Popen[str]") -> float:
    """Has a worker do one unit of its work and returns its seconds."""
    sent, answers = worker.stdin, worker.stdout
    assert sent
    assert answers
    sent.write("go\n")
    sent.flush()
    while line := answers.readline():
        if line.startswith("seconds "):
            return float(line.removeprefix("seconds "))
    sys.exit(f"a worker ended: {worker.args}")


# ---- workers ----------------------------------------------------------------------------------------------------


def work(kind: str, words: list[str]) -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the programs print
    if kind == "train":
        train(words, answers)
    unit = {
        "train-plain": lambda: plain_training(encode=True),
        "train-plain-latents": lambda: plain_training(encode=False),
        "generate-plain": plain_generation,
        "matmul": matmul,
        "generate-public": public_generation,
        "generate-tiny": tiny_generation,
    }[kind]()
    while wait():
        begin = time.process_time()
        unit()
        answer(answers, begin)


def wait() -> bool:
    return bool(sys.stdin.readline())


def answer(answers: IO[str], begin: float) -> None:
    answers.write(f"seconds {time.process_time() - begin}\n")
    answers.flush()


def train(words: list[str], answers: IO[str]) -> None:
    """Runs `cubediff train`, one step at each word from the parent."""
    import lightning as L

    class Turns(L.Callback):
        begin: float | None = None

        def on_train_batch_start(self, *_: Any) -> None:
            if self.begin is not None:
                answer(answers, self.begin)
            if not wait():
                os._exit(0)
            self.begin = time.process_time()

    fit = L.Trainer.fit

    def fit_in_turns(trainer: Any, *args: Any, **kwargs: Any) -> None:
        trainer.callbacks.append(Turns())
        fit(trainer, *args, **kwargs)

    L.Trainer.fit = fit_in_turns
    sys.argv = ["train", *words]
    runpy.run_module("cubediff.train", run_name="__main__")


def plain_training(encode: bool) -> Callable[[], None]:
    """A training step in plain PyTorch: noise, a front face that is given, mean squared error, clipping and AdamW."""
    from public_layout import PROMPTS, build, corner_directions

    from cubediff.geometry.conventions import yaw_pitch

    _, plain = build()
    unet, vae, scheduler = plain.unet.train(), plain.vae.requires_grad_(False), plain.scheduler
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5)
    faces = torch.rand(BATCH * 6, 3, FACE, FACE) * 2 - 1
    stored = torch.randn(BATCH * 6, 4, FACE // 8, FACE // 8)
    size = stored.shape[-1]
    positions = torch.stack(yaw_pitch(corner_directions(size)), 1).float() / (2 * torch.pi) + 0.5
    positions = positions.repeat(BATCH, 1, 1, 1)
    mask = torch.zeros_like(stored[:, :1])
    mask[::6] = 1

    def step() -> None:
        latents = stored
        if encode:
            with torch.no_grad():
                latents = vae.encode(faces).latent_dist.sample() * vae.config.scaling_factor
        with torch.no_grad():
            text = plain.encode(PROMPTS[:BATCH]).repeat_interleave(6, 0)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (BATCH,)).repeat_interleave(6)
        noisy = torch.where(mask == 1, latents, scheduler.add_noise(latents, noise, timesteps))
        predicted = unet(torch.cat([noisy, positions, mask], 1), timesteps, text).sample
        F.mse_loss(predicted * (1 - mask), noise * (1 - mask)).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def sampling_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """A photo (1, 3, 128, 128) and unit noise (1, 6, 4, 16, 16)."""
    photo = torch.rand(1, 3, FACE, FACE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return photo, torch.randn(1, 6, 4, FACE // 8, FACE // 8, generator=torch.Generator().manual_seed(2))


def plain_generation() -> Callable[[], None]:
    from public_layout import build

    _, plain = build()
    photo, noise = sampling_inputs()
    return lambda: void(plain(photo[0], noise[0], STEPS))


def public_generation() -> Callable[[], None]:
    """The pipeline with the public layout, of whichever checkout is imported."""
    from diffusers import UNet2DConditionModel

    from cubediff import CubeDiffPipeline

    photo, noise = sampling_inputs()
    tiny = CubeDiffPipeline.from_2d(MODEL)
    config = {key: value for key, value in tiny.unet.config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel(**config | {"in_channels": 7}).eval()
    layout = {"position_encoding": "uv_pi", "position_samples": "corners", "sync_group_norm": False}
    public = CubeDiffPipeline(**tiny.components | {"unet": unet}, **layout, image_drop="attention")
    public.set_progress_bar_config(disable=True)
    call = {"latents": noise, "num_inference_steps": STEPS, "output_type": "latent"}
    return lambda: void(public(PROMPT, image=photo, **call))


def tiny_generation() -> Callable[[], None]:
    """tiny_sd as a CubeDiff of whichever checkout is imported."""
    from cubediff import CubeDiffPipeline

    tiny = CubeDiffPipeline.from_2d(MODEL)
    tiny.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"latents": sampling_inputs()[1], "num_inference_steps": STEPS, "output_type": "latent"}
    return lambda: void(tiny(PROMPT, **call))


def matmul() -> Callable[[], None]:
    """A product of two square matrices in float32."""
    left, right = torch.rand(2, MATMUL, MATMUL)
    return lambda: void(left @ right)


def void(_: object) -> None: ...


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3:])
    else:
        main()
