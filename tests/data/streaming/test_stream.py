"""The training stream: the same for any ranks and workers, and resumed exactly from a checkpoint."""

import itertools
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.panoramas import Recorder, data, fit, keys, shards
from support.runs import QUICK, composed

from cubediff.configs import build
from cubediff.data.batches import decoding
from cubediff.images.jpeg import decode_jpeg
from cubediff.runs.record import data_records

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),  # of the resumed run
]

TOTAL = 35


def joined_batches(path: Any, world: int, workers: int, epochs: int, **options: Any) -> list[list[tuple[str, float]]]:
    """The batches of all ranks joined: keys and yaws."""
    ranks = []
    for rank in range(world):
        loader = data(path, rank, world, num_workers=workers, batch_size=2, **options).train_dataloader()
        batches = [batch for _ in range(epochs) for batch in loader]
        ranks.append([list(zip(b["key"], b["yaw"].tolist(), strict=True)) for b in batches])
    return [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_two_ranks_of_three_workers_see_each_sample_once_an_epoch_and_resume_anywhere(
    tmp_path: Path, count: int
) -> None:
    """An epoch has as many full batches as the samples fill; the surplus comes first in the next."""
    path = shards(tmp_path, TOTAL, shard_size=math.ceil(TOTAL / count))
    epochs = 4
    uninterrupted = joined_batches(path, 2, 3, epochs)
    stream = [key for batch in uninterrupted for key, _ in batch]
    assert len(stream) == epochs * (TOTAL // 4) * 4
    every = {f"{i:03d}": 1 for i in range(TOTAL)}
    for epoch in range(len(stream) // TOTAL):
        assert Counter(stream[epoch * TOTAL : (epoch + 1) * TOTAL]) == every
    step = 3 + count
    resumed = {
        "2 ranks × 3 workers": joined_batches(path, 2, 3, epochs, position=4 * step),
        "2 ranks × 1 worker": joined_batches(path, 2, 1, epochs, position=4 * step),
        "1 rank × 2 workers": joined_batches(path, 1, 2, 2, position=4 * step),
    }
    flat = [sample for batch in uninterrupted for sample in batch]
    print(f"\n{count} shards, {TOTAL} samples, {epochs} epochs of {TOTAL // 4} batches of 4, resumed at batch {step}")
    for name, batches in resumed.items():
        again = [sample for batch in batches for sample in batch][: len(flat) - 4 * step]
        same = sum(a == b for a, b in zip(again, flat[4 * step :], strict=False))  # its least length is asserted below
        print(f"{name:20} {same:4} of {len(again)} samples as without the interruption")
        assert again == flat[4 * step :][: len(again)]
        assert len(again) >= TOTAL


def test_a_mixture_shows_each_dataset_by_its_weight_and_completely_before_repeating(tmp_path: Path) -> None:
    small, large = shards(tmp_path / "small", 4, faces=True), shards(tmp_path / "large", 12)
    module = data([small, large], weights=[1, 3], batch_size=4)
    assert module.samples("train") == 16
    loader = module.train_dataloader()
    batches = [batch["key"] for _ in range(3) for batch in loader]
    assert len(batches) == 12
    for epoch in range(3):  # of both datasets, whose sizes equal their weights
        counts = Counter(keys({"key": batch} for batch in batches[epoch * 4 : (epoch + 1) * 4]))
        assert counts == {f"{i:03d}": 2 if i < 4 else 1 for i in range(12)}
    rare = data([large, small], weights=[0.9, 0.1], batch_size=10).train_dataloader()  # keys 004 … are the large one's
    for batch in [b for _ in range(8) for b in rare]:
        assert sum(key >= "004" for key in batch["key"]) >= 9 - 4


def test_without_weights_every_sample_of_a_mixture_counts_the_same(tmp_path: Path) -> None:
    paths = [shards(tmp_path / name, count) for name, count in (("a", 3), ("b", 12))]
    loader = data(paths, batch_size=5).train_dataloader()
    joined = Counter(key for _ in range(2) for key in keys(loader))
    assert joined == {f"{i:03d}": 4 if i < 3 else 2 for i in range(12)}


def test_a_mixture_on_the_command_line(tmp_path: Path) -> None:
    paths = [shards(tmp_path / name, 4) for name in "ab"]
    config = composed(*QUICK, f"data.path=[{paths[0]},{paths[1]}]", "data.weights=[0.3,0.7]", run_dir=tmp_path)
    module = build(config.data)
    module.setup()
    assert module.samples("train") == 8
    assert list(module.settings.weights) == [0.3, 0.7]
    tars = sum(path.stat().st_size for folder in paths for path in folder.glob("train-*.tar"))
    assert tars / 8 * 0.5 < module.sample_bytes < tars / 8  # the padding at a tar's end belongs to no sample
    braces = composed(*QUICK, f'data.path="{paths[0]}/train-{{000000..000000}}.tar"', run_dir=tmp_path)
    module = build(braces.data)
    module.setup()
    assert module.samples("train") == 4


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -2]])
def test_invalid_weights_are_refused(tmp_path: Path, weights: list[int]) -> None:
    with pytest.raises(ValueError, match=r"weights must be positive, one for each of the 2 datasets of path"):
        data([tmp_path, tmp_path], weights=weights)


# ---- with Lightning ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = shards(tmp_path_factory.mktemp("many"), 24, val=0.3)
    assert data(path).samples("train") in range(12, 20)
    return path


def saving(folder: Path, **when: Any) -> dict[str, Any]:
    """Trainer options that save a checkpoint after every step, or as `when` configures."""
    when = when or {"every_n_train_steps": 1}
    saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, auto_insert_metric_name=False, **when)
    return {"enable_checkpointing": True, "callbacks": [saver]}


STEPPING: tuple[dict[str, Any], ...] = (
    {},
    {"accumulate_grad_batches": 3},
    {"val_check_interval": 3},
    {"val_check_interval": 3, "accumulate_grad_batches": 2},
    {"limit_train_batches": 5},
    {"reload_dataloaders_every_n_epochs": 1},
)


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        *((options, 0) for options in STEPPING),
        (STEPPING[3], 2),
        *(pytest.param(options, 2, marks=pytest.mark.slow) for options in STEPPING if options != STEPPING[3]),
    ],
    ids=str,
)
def test_a_fit_resumed_at_any_step_sees_the_same_samples(
    many: Path, tmp_path: Path, options: dict[str, Any], workers: int
) -> None:
    """From checkpoints within epochs and between them, over more than two epochs: the same keys, yaws and steps."""
    steps = 12
    uninterrupted, _ = fit(many, steps, trainer=options | saving(tmp_path), num_workers=workers)
    for step in range(1, steps, 1 if workers == 0 else 4):
        resumed, _ = fit(
            many, steps, tmp_path / f"{step}.ckpt", trainer=options | saving(tmp_path), num_workers=2 - workers
        )
        assert resumed.steps == [s for s in uninterrupted.steps if s.step >= step], f"from step {step}"


@pytest.mark.parametrize("when", [{"every_n_epochs": 1}, {"monitor": "val/mean", "save_on_train_epoch_end": False}])
def test_checkpoints_of_epochs_and_validations_resume_exactly(many: Path, tmp_path: Path, when: dict[str, Any]) -> None:
    options = {"val_check_interval": 3, "num_sanity_val_steps": 2}
    uninterrupted, _ = fit(many, 20, trainer=options | saving(tmp_path, **when))
    saved = sorted(tmp_path.glob("*.ckpt"), key=lambda file: int(file.stem))
    assert len(saved) >= 2
    for checkpoint in saved:
        resumed, _ = fit(many, 20, checkpoint, trainer=options | saving(tmp_path, **when))
        assert resumed.steps == [s for s in uninterrupted.steps if s.step >= int(checkpoint.stem)], checkpoint.name


def test_a_batch_whose_step_failed_is_seen_again(many: Path, tmp_path: Path) -> None:
    uninterrupted, _ = fit(many, 9)
    with pytest.raises(FloatingPointError):
        fit(many, 9, model=Recorder(fails_at=5), trainer=saving(tmp_path, save_on_exception=True, every_n_epochs=1000))
    (checkpoint,) = tmp_path.glob("*.ckpt")
    resumed, _ = fit(many, 9, checkpoint, trainer=saving(tmp_path, every_n_epochs=1000))
    assert resumed.steps == uninterrupted.steps[5:]


def test_a_run_with_a_larger_batch_resumes_at_the_same_sample(many: Path, tmp_path: Path) -> None:
    uninterrupted, _ = fit(many, 12)
    fit(many, 3, trainer=saving(tmp_path))
    resumed, _ = fit(many, 6, tmp_path / "3.ckpt", batch_size=4, trainer=saving(tmp_path))
    expected = [key for step in uninterrupted.steps[3:] for key in step.keys]
    got = [key for step in resumed.steps for key in step.keys]
    assert len(got) == 3 * 4
    assert got == expected[:12]


@pytest.mark.parametrize("began_without_the_option", [False, True])
def test_lightning_resumes_with_the_decoding_of_the_checkpoint(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began_without_the_option: bool
) -> None:
    """In training and in validation, also before its first step."""
    options: dict[str, Any] = {"face_size": 8, "trainer": saving(tmp_path) | {"num_sanity_val_steps": 2}}
    fit(many, 3, **options)
    content = torch.load(tmp_path / "3.ckpt", weights_only=False)
    if began_without_the_option:
        del content["PanoramaDataModule"]["jpeg_scaling"]
        torch.save(content, tmp_path / "3.ckpt")
    asked: set[int | None] = set()

    def recorded(content: bytes, min_height: int | None) -> np.ndarray:
        asked.add(min_height)
        return decode_jpeg(content, min_height)

    monkeypatch.setattr(decoding, "decode_jpeg", recorded)
    resumed, _ = fit(many, 30, tmp_path / "3.ckpt", **options)
    assert resumed.validated
    assert asked == {None if began_without_the_option else 16}


def test_resuming_with_other_data_logs_a_warning(many: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, trainer = fit(many, 3)
    state = trainer.datamodule.state_dict()
    same, other = data(many), data(shards(tmp_path, 5))
    caplog.clear()
    same.load_state_dict(state)
    assert not caplog.messages
    other.load_state_dict(state)
    assert caplog.messages[0].startswith(
        f"data.path has 5 training samples and had {same.samples('train')}: the stream"
    )


@pytest.mark.parametrize("name", ["set.tar", "a=1,b", "{a,b}", "[x]", "100% #1", "été 夕"])
def test_any_folder_and_tar_name_is_a_data_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    shutil.copytree(shards(tmp_path / "built", 4), folder)
    tar = tmp_path / f"{name} {{1..3}}.tar"
    shutil.copy(folder / "train-000000.tar", tar)
    for path in (folder, tar):
        assert len(keys(data(path, batch_size=1).train_dataloader())) == 4
        assert manifest_of(path) == (path == folder)


def manifest_of(path: Path) -> bool:
    (record,) = data_records(data(path))
    return record["manifest_sha256"] is not None
