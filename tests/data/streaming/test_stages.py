"""`data.stages`: the user's WebDataset stages see every sample in order, and the stream stays reproducible."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import webdataset as wds
from lightning.pytorch.callbacks import ModelCheckpoint
from support.panoramas import Step, data, fit, keys, shards, spoil
from support.runs import QUICK, composed

from cubediff.configs import build
from cubediff.data import DataError
from cubediff.data.streaming.stream import Sample

TOTAL = 14


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("stages"), TOTAL, shard_size=5)


def is_even(sample: Sample) -> bool:
    return int(str(sample["__key__"])) % 2 == 0


def shout(sample: Sample) -> Sample:
    """Replaces the caption, as JSON again."""
    record = json.loads(sample["json"])  # type: ignore[arg-type]
    return {**sample, "json": json.dumps({**record, "caption": record["caption"].upper()}).encode()}


def fail_on_odd(sample: Sample) -> Sample:
    if not is_even(sample):
        raise KeyError("odd")
    return sample


def add_noise(sample: Sample) -> Sample:
    """Decodes the JPEG and adds noise that is seeded with the position."""
    image = cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), cv2.IMREAD_COLOR_RGB)  # type: ignore[call-overload]
    noise = np.random.default_rng(sample["__index__"]).integers(0, 256, image.shape, np.uint8)  # type: ignore[arg-type]
    return {**sample, "jpg": noise, "json": {"caption": "noise"}}


def short_captions(samples: Iterator[Sample]) -> Iterator[Sample]:
    """A custom stage: a generator function."""
    for sample in samples:
        if is_even(sample):
            yield shout(sample)


def stream(path: Path, world: int = 1, workers: int = 0, **options: Any) -> list[tuple[str, float, str, bytes]]:
    """Key, yaw, caption and image of every sample that all ranks show in two epochs."""
    ranks = []
    for rank in range(world):
        options = {"max_skipped_share": 1.0, **options}
        loader = data(path, rank, world, num_workers=workers, batch_size=4 // world, **options).train_dataloader()
        ranks.append([batch for _ in range(2) for batch in loader])
    batches = [batch for parts in zip(*ranks, strict=True) for batch in parts]
    return [
        (key, float(yaw), prompts[0], image.numpy().tobytes())
        for b in batches
        for key, yaw, prompts, image in zip(b["key"], b["yaw"], b["prompts"], b["panorama"], strict=True)
    ]


# ---- the source --------------------------------------------------------------------------------------------


def test_the_source_of_a_pipeline_yields_the_samples_in_the_order_of_the_stream(path: Path) -> None:
    module = data(path, batch_size=4)
    shown = keys(module.train_dataloader())
    source = module._streams["train"].source
    samples = list(wds.DataPipeline(partial(source, range(12)), wds.map(shout)))
    assert [sample["__key__"] for sample in samples] == shown
    for index, sample in enumerate(samples):
        assert set(sample) == {"__key__", "__url__", "__index__", "jpg", "json"}
        assert sample["__index__"] == index
        assert str(sample["__url__"]).startswith(f"{path}/train-")
        assert json.loads(sample["json"])["caption"] == f"PANORAMA {sample['__key__']}"


# ---- stages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stages",
    [
        [wds.select(is_even)],
        [wds.map(fail_on_odd)],
        [wds.map(fail_on_odd, handler=wds.ignore_and_continue)],
        [wds.select(is_even), wds.map(shout)],
        [short_captions],
    ],
    ids=["select", "map that raises", "map that drops", "select and map", "generator"],
)
def test_the_next_sample_takes_the_position_of_a_filtered_one(path: Path, stages: list[Any]) -> None:
    uninterrupted, filtered = stream(path), stream(path, stages=stages)
    order = [key for key, *_ in uninterrupted + stream(path, position=len(uninterrupted))]
    for position, (key, yaw, prompt, _) in enumerate(filtered):
        assert key == next(k for k in order[position:] if int(k) % 2 == 0)
        assert yaw == uninterrupted[position][1]  # the augmentation is the position's
        upper = short_captions in stages or len(stages) == 2
        assert prompt == (f"PANORAMA {key}" if upper else f"panorama {key}")


def test_filtered_samples_count_as_skipped_and_too_many_stop_the_run(path: Path) -> None:
    module = data(path, batch_size=7, max_skipped_share=1.0, stages=[wds.select(is_even)])
    list(module.train_dataloader())
    assert module.skipped == TOTAL / 2
    strict = data(path, batch_size=7, max_skipped_share=0.4, stages=[wds.select(is_even)])
    with pytest.raises(DataError, match=r"of 14 samples were skipped, more than data\.max_skipped_share=0\.4"):
        list(strict.train_dataloader())
    nothing = data(path, max_skipped_share=1.0, stages=[wds.select(lambda sample: False)])
    with pytest.raises(DataError, match=r"100 samples in a row were skipped, .*: filtered out by data\.stages"):
        list(nothing.train_dataloader())


def test_validation_samples_pass_through_the_stages_too(tmp_path: Path) -> None:
    path = shards(tmp_path, 12, val=0.5)
    expected = [key for key in keys(data(path).val_dataloader()) if int(key) % 2 == 0]
    module = data(path, stages=[wds.select(is_even)])
    assert keys(batch for batch in module.val_dataloader() if batch["counted"]) == expected
    assert module.skipped == module.samples("val") - len(expected) > 0
    assert keys([module.examples(2)]) == expected[:2]


def test_a_stage_may_decode_the_image_and_the_record(path: Path) -> None:
    (batch,) = data(path, batch_size=12, panorama_height=32, stages=[wds.map(add_noise)]).train_dataloader()
    assert {prompt for prompts in batch["prompts"] for prompt in prompts} == {"noise"}
    for position, image in zip(batch["position"], batch["panorama"], strict=True):
        expected = np.random.default_rng(position).integers(0, 256, (32, 64, 3), np.uint8)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_a_damaged_sample_never_reaches_a_stage(tmp_path: Path) -> None:
    path = shards(tmp_path, 4)
    spoil(path / "train-000000.tar", "002.jpg")
    sample_keys: list[object] = []
    module = data(
        path, batch_size=4, max_skipped_share=1.0, stages=[wds.map(lambda s: sample_keys.append(s["__key__"]) or s)]
    )
    list(module.train_dataloader())
    assert set(sample_keys) == {"000", "001", "003"}
    assert module.skipped == 1


def twice(samples: Iterator[Sample]) -> Iterator[Sample]:
    for sample in samples:
        yield sample
        yield sample


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (twice, "got several samples"),
        (wds.to_tuple("jpg", "json"), "got a tuple"),
    ],
)
def test_stages_that_do_not_map_samples_one_by_one_are_refused(path: Path, stage: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.stages must .*{message}"):
        list(data(path, stages=[stage]).train_dataloader())


# ---- reproducibility ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [[], [wds.select(is_even), wds.map(add_noise)]], ids=["none", "filter and noise"])
@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (2, 3), (4, 1)])
def test_the_stream_is_the_same_for_any_ranks_and_workers_and_resumes_anywhere(
    path: Path, stages: list[Any], world: int, workers: int
) -> None:
    uninterrupted = stream(path, stages=stages)
    assert stream(path, world, workers, stages=stages) == uninterrupted
    for step in (1, 2, 4):
        resumed = stream(path, world, workers, stages=stages, position=4 * step)
        assert resumed[: len(uninterrupted) - 4 * step] == uninterrupted[4 * step :], f"resumed after {step} batches"


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")  # the resumed run saves there too
def test_a_fit_with_stages_resumes_exactly_in_the_middle_of_an_epoch(path: Path, tmp_path: Path) -> None:
    def run(checkpoint: Path | None = None, workers: int = 0) -> list[Step]:
        saver = ModelCheckpoint(
            tmp_path, filename="{step}", save_top_k=-1, auto_insert_metric_name=False, every_n_train_steps=1
        )
        trainer = {"limit_val_batches": 0, "enable_checkpointing": True, "callbacks": [saver]}
        stages = [wds.select(is_even), wds.map(add_noise)]
        model, _ = fit(path, 9, checkpoint, trainer=trainer, num_workers=workers, stages=stages, max_skipped_share=1.0)
        return model.steps

    uninterrupted = run()
    for step in (2, 5, 8):
        resumed = run(tmp_path / f"{step}.ckpt", workers=2)
        assert resumed == [s for s in uninterrupted if s.step >= step], f"from step {step}"


# ---- by config ---------------------------------------------------------------------------------------------


def test_stages_come_from_the_command_line(path: Path, tmp_path: Path) -> None:
    predicate = f"{{_target_:hydra.utils.get_method,path:{__name__}.is_even}}"
    select = f"{{_target_:webdataset.select,predicate:{predicate}}}"
    stages = f"data.stages=[{select},{{_target_:{__name__}.short_captions,_partial_:true}}]"
    config = composed(*QUICK, f"data.path={path}", stages, "data.max_skipped_share=1.0", run_dir=tmp_path)
    for batch in build(config.data).train_dataloader():
        assert all(int(key) % 2 == 0 for key in batch["key"])
        assert [prompts[0] for prompts in batch["prompts"]] == [f"PANORAMA {key}" for key in batch["key"]]
