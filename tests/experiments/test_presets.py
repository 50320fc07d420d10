"""experiments/presets: its settings, its rule, and the whole script at a small scale."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cubediff.generation.options import PRESETS
from cubediff.pipelines.loading import tiny_random

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments/presets"
sys.path.append(str(FOLDER))

import choose  # noqa: E402


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_setting_of_the_experiment(name: str) -> None:
    assert PRESETS[name] in [vars(setting) for setting in choose.SETTINGS.values()]


@pytest.mark.parametrize(("name", "expected"), [("ddim_50", 100), ("dpm_8", 16), ("euler_10_interval", 17)])
def test_predictions_are_the_branches_that_the_network_gets(name: str, expected: int) -> None:
    setting = choose.SETTINGS[name]
    assert setting.predictions == expected
    pipeline = tiny_random()
    pipeline.set_progress_bar_config(disable=True)
    rows: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0]) // 6))
    interval = {"guidance_start": setting.guidance_start, "guidance_stop": setting.guidance_stop}
    pipeline("a hall", num_inference_steps=setting.steps, output_type="latent", **interval)
    assert sum(rows) == expected


def measured(rms: float, retrieved: float, shift: float) -> choose.Measured:
    """Eight generations whose metrics and features are those of all sets, but for constants."""
    draw = torch.randn(8, 8, 6, generator=torch.Generator().manual_seed(0))
    terms = {
        "overlap_rms": torch.full((8, 1), rms**2, dtype=torch.float64),
        "retrieval_psnr": torch.full((8, 1), retrieved, dtype=torch.float64),
        "retrieval_efficientnet_lite0": torch.ones(8, 1, dtype=torch.float64),
    }
    return choose.Measured(terms, draw + shift, draw.roll(1, 0))


@pytest.mark.parametrize(
    ("rms", "retrieved", "shift", "failing"),
    [
        (0.05, 0.6, 1.0, set()),
        (0.0524, 0.572, 1.0, set()),  # within 5 %
        (0.0526, 0.6, 1.0, {"overlap_rms"}),
        (0.05, 0.568, 1.0, {"retrieval_psnr"}),
        (0.05, 0.6, 2.0, {"kd_efficientnet_lite0"}),
        (0.01, 0.9, 0.5, set()),  # better
    ],
)
def test_a_metric_holds_if_it_is_at_most_five_percent_worse(
    rms: float, retrieved: float, shift: float, failing: set[str]
) -> None:
    rows = choose.differences(measured(0.05, 0.6, 1.0), measured(rms, retrieved, shift))
    assert {name for name, row in rows.items() if not row["holds"]} == failing
    assert rows["overlap_rms"]["difference"] == pytest.approx(rms - 0.05)


def test_the_table_marks_what_does_not_hold() -> None:
    rows = choose.differences(measured(0.05, 0.6, 1.0), measured(0.06, 0.6, 1.0))
    text = choose.table({"dpm_8": rows}, {"ddim_50": [6.0, 9.0, 7.0], "dpm_8": [1.0, 1.0, 2.0]})
    row = text.splitlines()[-1]
    assert row.startswith("| `dpm_8` | 16 | 1.00 | 7.0× | 0.06 (+0.01 to +0.01) † | 0.6 (+0 to +0) |")
    assert row.count("†") == 1


@pytest.mark.slow
def test_the_script_resumes_and_reports_every_setting(tmp_path: Path) -> None:
    tiny_random().save_pretrained(tmp_path / "model")
    words = [sys.executable, "experiments/presets/choose.py", tmp_path / "model", "data/samples", tmp_path / "out"]
    words += ["--count", 4, "--repetitions", 1, "--timed", 1, "--settings", "dpm_8"]
    for _ in range(2):
        done = subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "seed" not in done.stderr  # nothing is generated again
    assert done.stdout.splitlines()[-1].startswith("| `dpm_8` | 16 |")
    results = json.loads((tmp_path / "out/presets.json").read_text())
    assert results["generations"] == 4
    assert set(results["metrics"]["dpm_8"]) == {*choose.MEANS, choose.KERNEL}
    records = sorted((tmp_path / "out").glob("*/00/samples/*/generation.json"))
    assert len(records) == 8
    assert {json.loads(record.read_text())["seed"] for record in records} == {0, 1, 2, 3}
