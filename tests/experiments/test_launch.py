"""experiments/launch: every override composes, the files agree with each other, and the commands start on a CPU."""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig
from support.runs import composed

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "experiments/launch"
README = (LAUNCH / "README.md").read_text()
SBATCH = ("slurm_node.sbatch", "slurm_nodes.sbatch")
VERTEX: dict[str, Any] = yaml.safe_load((LAUNCH / "vertex.yaml").read_text())
(POOL,) = VERTEX["workerPoolSpecs"]
PAPER_BATCH = 64
LIMIT = 300  # seconds; ranks that wait for each other would wait for half an hour

# Overrides that replace the GPUs and Stable Diffusion of a launch file; as the last ones they take effect.
HERE = (
    *("model=tiny_random", "logger=csv", "callbacks=none", "trainer.accelerator=cpu", "trainer.precision=32-true"),
    *("trainer.accumulate_grad_batches=1", "trainer.max_steps=2", "trainer.limit_val_batches=0", "data.batch_size=1"),
    "data.num_workers=0",
)


def blocks() -> list[str]:
    """The commands of the README, with continued lines joined."""
    fenced = re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]


def command(start: str) -> list[str]:
    """The words of the README's only command with this start."""
    (found,) = [line for line in blocks() if line.startswith(start)]
    return shlex.split(found)


def words(name: str) -> list[str]:
    """The overrides that a launch file or README command passes to `cubediff train`."""
    if name == "vertex.yaml":
        return list(POOL["containerSpec"]["args"])
    if name.endswith(".sbatch"):
        text = (LAUNCH / name).read_text().replace("\\\n", " ")
        (line,) = re.findall(r"python -m cubediff\.train (.*) \"\$@\"", text)
        return [*shlex.split(line), *command(f"sbatch {name}")[2:]]
    parts = command(name)
    return parts[parts.index("cubediff" if "docker" in name else "cubediff.train") + 1 :]


def directives(name: str) -> dict[str, str]:
    """A script's #SBATCH options."""
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", (LAUNCH / name).read_text(), re.MULTILINE)
    return dict(lines)


STARTS = (
    *("vertex.yaml", *SBATCH, "torchrun --standalone", "torchrun --nnodes", "python -m cubediff.train"),
    "docker run",
)


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest) -> tuple[str, DictConfig]:
    name: str = request.param
    return name, composed(*words(name))


def test_every_command_composes_to_steps_of_64_panoramas_on_the_requested_gpus(
    start: tuple[str, DictConfig],
) -> None:
    name, config = start
    trainer = config.trainer
    nodes = trainer.num_nodes or 1
    assert config.data.batch_size * trainer.devices * nodes * trainer.accumulate_grad_batches == PAPER_BATCH
    assert trainer.accelerator == "gpu"
    assert trainer.strategy["_target_"].endswith("DDPStrategy")
    if name == "vertex.yaml":
        assert (trainer.devices, nodes) == (POOL["machineSpec"]["acceleratorCount"], POOL["replicaCount"])
    elif name in SBATCH:
        options = directives(name)
        assert options["nodes"] == str(nodes)
        assert options["ntasks-per-node"] == options["gpus-per-node"] == str(trainer.devices)
    elif name.startswith("torchrun"):
        given = command(name)
        assert given[given.index("--nproc-per-node") + 1] == str(trainer.devices)
        assert (given[given.index("--nnodes") + 1] if "--nnodes" in given else "1") == str(nodes)


@pytest.mark.parametrize("name", STARTS)
def test_every_command_gives_a_run_dir_and_shards(name: str) -> None:
    keys = [word.partition("=")[0] for word in words(name)]
    assert "run_dir" in keys
    assert "data.path" in keys
    assert len(set(keys)) == len(keys)


# ---- Vertex AI and its container -----------------------------------------------------------------------------


def test_vertex_job_requests_four_l4_and_writes_its_run_to_the_bucket() -> None:
    machine = POOL["machineSpec"]
    assert machine == {"machineType": "g2-standard-48", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 4}
    config = composed(*words("vertex.yaml"))
    assert str(config.run_dir).startswith("/gcs/BUCKET/")
    assert str(config.data.path).startswith("gs://BUCKET/")
    assert config.data.cache_gb < POOL["diskSpec"]["bootDiskSizeGb"] - 50  # the image and the model's weights
    assert VERTEX["scheduling"]["restartJobOnWorkerRestart"] is True
    assert "command" not in POOL["containerSpec"]  # it would replace the image's entry point


def test_vertex_commands_replace_every_placeholder() -> None:
    capitals = set(re.findall(r"\b(REGION|PROJECT|BUCKET)\b", (LAUNCH / "vertex.yaml").read_text()))
    filled = {match for word in command("sed ") for match in re.findall(r"^s/([A-Z]+)/", word)}
    assert filled == capitals


def test_dockerfile_copies_existing_files_and_starts_an_installed_module() -> None:
    text = (LAUNCH / "Dockerfile").read_text()
    copied = [path for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for path in line.split()[:-1]]
    kept = [line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert {path.rstrip("/") for path in copied} == set(kept)
    assert all((ROOT / path).exists() for path in kept)
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)
    python, flag, module = yaml.safe_load(entry)
    assert (python, flag) == ("python", "-m")
    assert importlib.util.find_spec(module) is not None
    assert (ROOT / "constraints.txt").read_text().count("\ntorch==") == 1  # what the image greps


# ---- SLURM ---------------------------------------------------------------------------------------------------

SRUN = """#!{python}
import os, pathlib, signal, subprocess, sys, time
pathlib.Path(sys.argv[0]).with_name("pid").write_text(str(os.getpid()))
end = next(i for i, word in enumerate(sys.argv[1:], 1) if not word.startswith("--"))
tasks, each = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
places = [dict(SLURM_PROCID=str(t), SLURM_LOCALID=str(t % each), SLURM_NODEID=str(t // each)) for t in range(tasks)]
command = [sys.executable if sys.argv[end] == "python" else sys.argv[end], *sys.argv[end + 1:]]
started = [subprocess.Popen(command, env=dict(os.environ, **place)) for place in places]
signal.signal(signal.SIGTERM, lambda *_: [process.send_signal(signal.SIGTERM) for process in started])
while None in (codes := [process.poll() for process in started]):
    if any(codes):  # --kill-on-bad-exit
        [process.kill() for process in started]
    time.sleep(0.1)
sys.exit(max(map(abs, codes)))
"""


def slurm(folder: Path, name: str, *arguments: str, srun: str, nodes: int = 1, tasks: int = 2) -> subprocess.Popen[str]:
    """Starts a script as SLURM does, with replacements of srun and scontrol; the latter records its arguments."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for program, text in (("srun", srun), ("scontrol", f'#!/bin/sh\necho "$@" >> {programs}/asked\n')):
        (programs / program).write_text(text)
        (programs / program).chmod(0o755)
    job = {
        "SLURM_JOB_ID": str(os.getpid()),  # from which Lightning makes the port
        "SLURM_JOB_NAME": "cubediff",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks // nodes),
        "SLURM_NNODES": str(nodes),
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_CPUS_PER_TASK": "1",
    }
    env = os.environ | job | {"PATH": f"{programs}:{os.environ['PATH']}"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(["bash", LAUNCH / name, *arguments], cwd=folder, env=env, **pipes)


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=LIMIT)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def scontrol_calls(folder: Path) -> str | None:
    """The recorded arguments of scontrol."""
    file = folder / "bin/asked"
    return file.read_text() if file.exists() else None


@pytest.mark.parametrize("name", SBATCH)
@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (143, True)])
def test_a_terminated_job_requeues_itself(tmp_path: Path, name: str, code: int, requeued: bool) -> None:
    result = ended(slurm(tmp_path, name, "data.path=x", "run_dir=y", srun=f"#!/bin/sh\nexit {code}\n"))
    assert result.returncode == code, result.stderr
    assert scontrol_calls(tmp_path) == (f"requeue {os.getpid()}\n" if requeued else None)


@pytest.mark.parametrize("name", SBATCH)
def test_a_job_without_a_run_dir_starts_nothing(tmp_path: Path, name: str) -> None:
    result = ended(slurm(tmp_path, name, "data.path=x", srun="#!/bin/sh\necho started\n"))
    assert (result.returncode, result.stdout, scontrol_calls(tmp_path)) == (2, "", None)
    assert "set run_dir=DIR" in result.stderr


@pytest.mark.parametrize("name", SBATCH)
def test_slurm_signals_the_time_limit_by_sigterm_which_ends_a_run_with_a_checkpoint(name: str) -> None:
    options = directives(name)
    assert options["signal"] == "TERM@300"  # to the tasks: with B: the script alone would get it
    assert "requeue" in options
    assert options["open-mode"] == "append"


# ---- started here --------------------------------------------------------------------------------------------


def finished(result: subprocess.CompletedProcess[str], folder: Path) -> None:
    """Asserts that one run of two ranks succeeded, and that it wrote nothing outside its folder."""
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained: ") == 1
    assert "2 per step" in result.stdout
    assert (folder / "run/export/model_index.json").is_file()
    assert {path.name for path in folder.iterdir()} <= {"run", "bin"}


def here(words_of_command: list[str], shards: Path, folder: Path) -> list[str]:
    """A README command with this machine's torchrun, shards and run directory."""
    torchrun = shutil.which("torchrun", path=str(Path(sys.executable).parent))
    assert torchrun is not None
    paths = {
        "torchrun": torchrun,
        "data.path=SHARDS": f"data.path={shards}",
        "run_dir=RUN": f"run_dir={folder / 'run'}",
    }
    return [paths.get(word, word) for word in words_of_command]


@pytest.mark.ddp
@pytest.mark.slow
def test_torchrun_command_of_the_readme_starts_one_run_of_two_ranks(tiny_shards: Path, tmp_path: Path) -> None:
    words = here(command("torchrun --standalone"), tiny_shards, tmp_path)
    words[words.index("--nproc-per-node") + 1] = "2"
    result = subprocess.run(
        [*words, *HERE, "trainer.devices=2"], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT
    )
    finished(result, tmp_path)


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("parts", [(), ("trainer=fsdp", "trainer.num_nodes=2")])
def test_torchrun_commands_of_two_nodes_start_one_run(
    tiny_shards: Path, tmp_path: Path, parts: tuple[str, ...]
) -> None:
    words = here(command("torchrun --nnodes"), tiny_shards, tmp_path)
    words[words.index("--nproc-per-node") + 1] = "1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words[words.index("--rdzv-endpoint") + 1] = f"127.0.0.1:{free.getsockname()[1]}"
    options: dict[str, Any] = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    nodes = [subprocess.Popen([*words, *HERE, *parts, "trainer.devices=1"], **options) for _ in range(2)]
    said = [node.communicate(timeout=LIMIT) for node in nodes]
    out, err = ("".join(parts) for parts in zip(*said, strict=True))
    finished(subprocess.CompletedProcess(words, max(node.returncode for node in nodes), out, err), tmp_path)


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize(("name", "nodes"), [("slurm_node.sbatch", 1), ("slurm_nodes.sbatch", 2)])
def test_slurm_scripts_start_one_run_of_two_tasks(tiny_shards: Path, tmp_path: Path, name: str, nodes: int) -> None:
    words = (f"data.path={tiny_shards}", f"run_dir={tmp_path / 'run'}", *HERE, f"trainer.devices={2 // nodes}")
    finished(ended(slurm(tmp_path, name, *words, srun=SRUN.format(python=sys.executable), nodes=nodes)), tmp_path)
    assert scontrol_calls(tmp_path) is None


@pytest.mark.ddp
@pytest.mark.slow
def test_a_slurm_job_at_its_time_limit_saves_requeues_itself_and_resumes(tiny_shards: Path, tmp_path: Path) -> None:
    """SLURM sends SIGTERM to all tasks at once, at any point of their steps."""
    steps = 60
    here = [word for word in HERE if word != "callbacks=none"]
    words = (f"data.path={tiny_shards}", f"run_dir={tmp_path / 'run'}", *here, "callbacks.samples=null")
    more = ("trainer.devices=2", f"trainer.max_steps={steps}", "trainer.log_every_n_steps=1")
    begun = slurm(tmp_path, "slurm_node.sbatch", *words, *more, srun=SRUN.format(python=sys.executable))
    assert begun.stderr is not None
    said = ""
    while not re.search(r"\| [1-9]\d*/60 ", said):  # the progress, in its middle
        piece = begun.stderr.read(1)
        assert piece, said
        said += piece
    os.kill(int((tmp_path / "bin/pid").read_text()), signal.SIGTERM)
    result = ended(begun)
    assert result.returncode == 143, said + result.stderr
    assert scontrol_calls(tmp_path) == f"requeue {os.getpid()}\n"
    assert list((tmp_path / "run/checkpoints").glob("*.ckpt"))
    assert not (tmp_path / "run/export").exists()
    again = ended(slurm(tmp_path, "slurm_node.sbatch", *words, *more, srun=SRUN.format(python=sys.executable)))
    finished(again, tmp_path)
    assert "resuming from" in again.stdout
