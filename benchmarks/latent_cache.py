"""Training on cached latents against training that encodes: steps/s, memory and losses of `experiment=tiny_cpu`.

    python benchmarks/latent_cache.py [STEPS]

Each way trains in a process of its own, on the panoramas of data/samples, one after the other.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = """
import resource, sys, time
from pathlib import Path
sys.path.insert(0, TESTS)
from support.runs import composed
from cubediff.runs import fit as train
from cubediff.module import CubeDiffModule

times = []
CubeDiffModule.on_train_batch_end = lambda *_: times.append(time.perf_counter())
run = Path(sys.argv[1])
train.fit(composed(*sys.argv[2:], run_dir=run), run)
rate = (len(times) - 2) / (times[-1] - times[1])
print("RATE", rate, "MIB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    # An allocator that gives memory back at once: what is measured is then what is in use.
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    with tempfile.TemporaryDirectory() as folder:
        shards, latents = f"{folder}/shards", f"{folder}/latents"
        words = ["experiment=tiny_cpu", f"trainer.max_steps={steps}", "trainer.limit_val_batches=0", "callbacks=none"]
        prepare = [
            "prepare",
            "data/samples",
            shards,
            "--captions",
            "data/samples/captions.jsonl",
            "--val-fraction",
            "0",
        ]
        cache = ["cache", "experiment=tiny_cpu", f"data.path={shards}", f"cache.output={latents}"]
        for command in (prepare, cache):
            subprocess.run([sys.executable, "-m", f"cubediff.{command[0]}", *command[1:]], cwd=ROOT, check=True,
                           capture_output=True)  # fmt: skip
        rows = {}
        for name, data in {"online": [f"data.path={shards}"], "cached": ["data=latents", f"data.path={latents}",
                                                                        "data.num_workers=0"]}.items():  # fmt: skip
            command = [sys.executable, "-c", RUN.replace("TESTS", repr(str(ROOT / "tests"))), f"{folder}/{name}"]
            done = subprocess.run([*command, *words, *data], cwd=ROOT, env=os.environ | at_once, text=True,
                                  capture_output=True)  # fmt: skip
            if done.returncode:
                sys.exit(done.stderr)
            _, rate, _, memory = done.stdout.splitlines()[-1].split()
            rows[name] = {"steps/s": float(rate), "MiB at most": float(memory)}
        size = sum(file.stat().st_size for file in Path(latents).iterdir())
    print(json.dumps({**rows, "speed, cached / online": rows["cached"]["steps/s"] / rows["online"]["steps/s"],
                      "MB of latents": size / 1e6}, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
