"""Counts the training step of Stable Diffusion 1.5 on paper: kernels, operations and bytes by kind, per panorama.

    python benchmarks/step_on_paper.py [OVERRIDE …]

The step runs on fake tensors with CUDA's rules (`cubediff.planning.cuda_rules`), so that no GPU and no weights are
needed. Overrides are those of `cubediff train`. The tables are of commit a16afbe, counted in the same way, of the
recipe of experiment=sd15_l4x4, of the same with gradient checkpointing, and of training on cached latents. In a clone
without that commit, its table is left out.
"""

import importlib
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch._subclasses.fake_tensor import FakeTensorMode

import cubediff

ROOT = Path(__file__).parents[1]
BEFORE = "a16afbe"
VARIANTS = {
    "the recipe": (),
    "gradient checkpointing": ("data.batch_size=2", "model.gradient_checkpointing=true"),
    "selective gradient checkpointing": ("data.batch_size=2", "model.gradient_checkpointing=selective"),
    "cached latents": ("data=latents",),
    "self-attention at the full resolution of each face to itself": ("model.pipeline.inflate=below_top",),
    "of each face to itself and to pooled keys of the others": ("model.pipeline.inflate=pooled_top",),
}


def counted(*overrides: str) -> list[str]:
    """The table of a micro-batch of experiment=sd15_l4x4 with further overrides."""
    from cubediff.configs import CONFIG_DIR
    from cubediff.planning.cost import cost

    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = compose("plan", overrides=["experiment=sd15_l4x4", *overrides])
    one = cost(config, config.data.batch_size)
    return table(one.operations, one.batch, one.peak)


def counted_before(tree: Path) -> list[str]:
    """The same of commit a16afbe, whose package has been imported from `tree`."""
    cubediff.__path__.append(str(ROOT / "src/cubediff"))  # what that commit lacks, such as cubediff.planning
    counting, rules, operations = (
        importlib.import_module(f"cubediff.planning.{name}") for name in ("counting", "cuda_rules", "operations")
    )
    old = importlib.import_module("cubediff.cost")
    with initialize_config_dir(str(tree / "conf"), version_base="1.3"):
        config = compose("train", overrides=["experiment=sd15_l4x4"])
    batch: int = config.data.batch_size
    peak = old.cost(config, batch, operations=False).peak
    module: Any = old._module(config)
    counter = operations.OperationCounter()
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for network in (module.unet, module.encoders.vae, module.encoders.text_encoder):
            counting.to_fake_parameters_(network)
        module.empty_text = module.encoders.encode_text([""])
        faces = torch.empty(batch, 6, 3, config.face_size, config.face_size)
        prompts = [[f"{panorama} {face}" for face in range(6)] for panorama in range(batch)]
        stack.enter_context(rules.cuda_autocast(config.trainer.precision))
        stack.enter_context(counter)
        stack.enter_context(rules.CudaFormats())
        loss = module._losses({"faces": faces, "prompts": prompts}, (0,)).mean()
        counter.in_backward = True
        loss.backward()
    return table(counter.operations, batch, peak)


def table(operations: Sequence[Any], batch: int, peak: float) -> list[str]:
    """Rows by kind, then totals and what could be saved, per panorama."""
    kinds: ModuleType = importlib.import_module("cubediff.planning.operations")
    rows = kinds.totals(operations)
    whole = kinds.Traffic(*(sum(row[i] for row in rows.values()) for i in range(3)))
    lines = [f"  {'':18s}{'kernels':>9s}{'TFLOP':>9s}{'GB':>9s}"]
    for name, row in {**rows, "total": whole}.items():
        lines.append(f"  {name:18s}{row.calls:9d}{row.flops / batch / 1e12:9.2f}{row.bytes / batch / 1e9:9.2f}")
    formats = Counter(
        each.channels_last for each in operations if each.name == "convolution" and each.shapes[1][-2:] == (3, 3)
    )
    recomputed = sum(each.flops for each in operations if each.phase == kinds.RECOMPUTATION)
    return [
        *lines,
        f"  recomputation {recomputed / batch / 1e12:.2f} TFLOP; of the 3 × 3 convolutions {formats[True]} in "
        f"channels_last, {formats[False]} not; peak of the micro-batch {peak / 2**30:.2f} GiB",
    ]


def print_before() -> None:
    """Runs `counted_before` on a checkout of the commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", BEFORE, "src", "conf"], cwd=ROOT, capture_output=True, check=False)
        if archive.returncode:
            print(f"commit {BEFORE} is not in this clone: {archive.stderr.decode().strip()}\n")
            return
        subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        code = f"import sys; sys.path[:0] = [{str(Path(folder) / 'src')!r}, {str(Path(__file__).parent)!r}]; "
        code += f"from pathlib import Path; import {Path(__file__).stem} as own; "
        code += f"print(*own.counted_before(Path({folder!r})), sep='\\n')"
        rows = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    print(f"commit {BEFORE} (batch 2, gradient checkpointing), per panorama", rows, sep="\n")


def main() -> None:
    print_before()
    for name, words in VARIANTS.items():
        print(f"{name}, per panorama", *counted(*words, *sys.argv[1:]), sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
