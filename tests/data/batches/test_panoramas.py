"""Batches of panoramas: every sample equally often, augmented, with captions that describe its faces."""

import itertools
import logging
import math
import multiprocessing
import random
import re
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.panoramas import COLOURS, data, fit, keys, shards, spoil

from cubediff.data import DataError, PanoramaDataModule, RandomPhotos, build_shards
from cubediff.data.batches.augmentation import Augmentation, Yaw
from cubediff.data.batches.decoding import resize_panorama
from cubediff.geometry import FACES, equirect_to_cube
from cubediff.images import jpeg as jpeg_files

SAMPLES = Path(__file__).parents[3] / "data" / "samples"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 panoramas, about 16 of them for training and 8 for validation, in shards of 4."""
    return shards(tmp_path_factory.mktemp("many"), 24, val=0.3)


# ---- photos as conditions ----------------------------------------------------------------------------------


def test_projected_photos_agree_with_the_faces_they_cover(tmp_path: Path) -> None:
    """On the sample panoramas, `known` agrees with the faces wherever `covered` is set."""
    build_shards(SAMPLES, tmp_path / "shards", SAMPLES / "captions.jsonl", val_fraction=0.0)
    module = data(tmp_path / "shards", batch_size=8, face_size=64, photos=RandomPhotos(share=0.6), panorama_height=256)
    batch = next(iter(module.train_dataloader()))
    cube = module.on_after_batch_transfer(batch, 0)
    kinds = [camera is None for camera in batch["cameras"]]
    assert 0 < sum(kinds) < 8
    for camera, faces, known, covered in zip(
        batch["cameras"], cube["faces"], cube["known"], cube["covered"], strict=True
    ):
        if camera is None:
            assert torch.equal(known[0], faces[0])
            assert torch.equal(covered.flatten(1).float().mean(1), torch.eye(6)[0])
            continue
        share = covered.float().mean()
        tan = math.tan(math.radians(camera.fov) / 2)
        whole = 4 * math.asin(math.sin(math.atan(tan)) * math.sin(math.atan(tan / camera.aspect))) / (4 * math.pi)
        assert 0.5 * whole < share < 2.2 * whole  # its part of the sphere; a face's pixels are not of equal size
        error = (known - faces).square()[covered.expand_as(known)].mean()
        assert 10 * torch.log10(4 / error) > 25  # dB; a photo of the size of a face is coarser than the panorama


def test_random_photos_keep_their_share_and_ranges_and_depend_on_the_rng_only() -> None:
    views = RandomPhotos(share=0.3, fov=(50.0, 60.0), pitch=20.0, roll=5.0, aspects=(1.0, 2.0))
    drawn = [views.draw(random.Random(seed)) for seed in range(4000)]
    cameras = [camera for camera in drawn if camera]
    assert abs(len(cameras) / 4000 - 0.3) < 5 * (0.21 / 4000) ** 0.5
    for name, low, high in (("fov", 50, 60), ("yaw", -180, 180), ("pitch", -20, 20), ("roll", -5, 5)):
        values = sorted(getattr(camera, name) for camera in cameras)
        assert low <= values[0] < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values[-1] <= high
    assert {camera.aspect for camera in cameras} == {1.0, 2.0}
    assert drawn == [views.draw(random.Random(seed)) for seed in range(4000)]


def test_a_batch_conditioned_on_front_faces_only_has_no_known_faces(tmp_path: Path) -> None:
    module = data(shards(tmp_path, 2), photos=RandomPhotos(share=0.0))
    assert "known" not in module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)


# ---- one sample --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("shown", ["faces", "panorama"])
def test_every_caption_describes_its_face_after_the_rotation(tmp_path: Path, shown: str, flip: float) -> None:
    """The caption of a wall is its colour, which is the colour at the centre of the rotated face."""
    share = float(shown == "faces")
    module = data(shards(tmp_path, 8, faces=True), batch_size=8, face_caption_probability=share, flip=flip)
    yaws = []
    for batch in itertools.chain(*([module.train_dataloader()] * 4)):
        cube = module.on_after_batch_transfer(batch, 0)
        yaws += cube["yaw"].tolist()
        for faces, prompts, yaw in zip(cube["faces"], cube["prompts"], cube["yaw"], strict=True):
            if shown == "panorama":
                assert len(set(prompts)) == 1
                assert prompts[0].startswith("panorama")
                continue
            centres = (faces[:, :, 7:9, 7:9].mean((-1, -2)) + 1) * 127.5
            for centre, name in zip(centres, prompts, strict=True):
                assert (centre - torch.tensor(COLOURS[name])).abs().max() < 25, (float(yaw), name)
            assert prompts[(prompts.index("red") + 1) % 4] == ("yellow" if flip else "green")
    turns = {round(yaw / 90) % 4 for yaw in yaws}
    assert turns == {0, 1, 2, 3}
    off = max(abs((yaw + 45) % 90 - 45) for yaw in yaws)
    assert off > 30 if shown == "panorama" else 5 < off <= 15


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 45), st.sampled_from(get_args(Yaw)))
def test_captions_of_the_faces_move_with_the_rotation(seed: int, probability: float, jitter: float, yaw: Yaw) -> None:
    faces = {face: face for face in FACES}
    augmentation = Augmentation(yaw, probability, jitter)
    view = augmentation.draw("all", faces, random.Random(seed))
    if view.prompts != ["all"] * 6:
        quarter = round(view.yaw / 90) if jitter < 45 else FACES.index(view.prompts[0])
        assert view.prompts == [FACES[(i + quarter) % 4] for i in range(4)] + ["up", "down"]
        assert abs(view.yaw - 90 * quarter) <= jitter
    assert view.yaw in {"uniform": [view.yaw], "quarters": [0, 90, 180, 270], "none": [0]}[yaw]
    assert augmentation.draw("all", None, random.Random(seed)).prompts == ["all"] * 6


def test_without_rotation_the_faces_equal_those_of_the_panorama(tmp_path: Path) -> None:
    module = data(shards(tmp_path, 2, faces=True), yaw="none", face_caption_probability=1.0)
    batch = next(iter(module.train_dataloader()))
    assert batch["yaw"].tolist() == [0, 0]
    assert batch["prompts"] == [list(COLOURS)] * 2
    panorama = batch["panorama"].double() / 127.5 - 1
    expected = equirect_to_cube(panorama, 16, 95.0, mode="bicubic").clamp(-1, 1)
    cube = module.on_after_batch_transfer(batch, 0)
    assert set(cube) == {"faces", "yaw", "prompts", "key", "position"}
    assert cube["faces"].dtype == torch.float32
    assert cube["faces"].shape == (2, 6, 3, 16, 16)
    torch.testing.assert_close(cube["faces"].double(), expected, atol=1e-5, rtol=0)


def test_the_sample_panoramas_are_resized_without_visible_change(tmp_path: Path) -> None:
    build_shards(SAMPLES, tmp_path / "shards", val_fraction=0.9)
    module = data(tmp_path / "shards", face_size=64, jpeg_scaling=False)
    assert module.panorama_height == 128
    for batch in module.val_dataloader():
        assert batch["panorama"].shape[1:] == (3, 128, 256)
        assert batch["panorama"].dtype == torch.uint8
        for image, key in zip(batch["panorama"], batch["key"], strict=True):
            with Image.open(SAMPLES / f"{key}.jpg") as file:
                expected = np.asarray(file.convert("RGB").reduce(file.height // 128), np.float64)
            assert np.abs(image.permute(1, 2, 0).numpy() - expected).mean() < 1


@pytest.mark.parametrize(("height", "target"), [(64, 96), (48, 64), (30, 64), (31, 64), (64, 65)])
def test_enlarging_treats_the_seam_like_any_other_column(height: int, target: int) -> None:
    """Rotating by 90° before or after enlarging gives the same image, including seam and poles."""
    image = np.random.default_rng(0).integers(0, 256, (height, 2 * height, 3), np.uint8)
    rotated = resize_panorama(np.roll(image, height, axis=1), target)
    expected = np.roll(resize_panorama(image, target), target, axis=1)
    assert rotated.shape == (target, 2 * target, 3)
    assert np.abs(rotated.astype(int) - expected).max() <= 1
    plain = cv2.resize(image, (2 * target, target), interpolation=cv2.INTER_CUBIC)
    inside = np.s_[4:-4, 4:-4]
    assert np.abs(resize_panorama(image, target)[inside].astype(int) - plain[inside]).max() <= 1


def test_shrinking_keeps_the_mean_and_commutes_with_rotation() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 192, 3), np.uint8)
    small = resize_panorama(image, 40)
    assert abs(small.mean(dtype=np.float64) - image.mean(dtype=np.float64)) < 0.5
    rotated = resize_panorama(np.roll(image, 96, axis=1), 40)
    assert np.abs(rotated.astype(int) - np.roll(small, 40, axis=1)).max() <= 1


def decoded_sizes(module: PanoramaDataModule, monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, ...]]:
    """The sizes of JPEGs as they are decoded for training, validation and the examples."""
    imdecode, sizes = cv2.imdecode, set()

    def recorded(*arguments: Any) -> np.ndarray:
        image = imdecode(*arguments)
        sizes.add(image.shape[1::-1])
        return image

    with monkeypatch.context() as patch:
        patch.setattr(jpeg_files.cv2, "imdecode", recorded)
        for _ in itertools.chain(module.train_dataloader(), module.val_dataloader()):
            pass
        module.examples(1)
    return sizes


def panoramas(module: PanoramaDataModule) -> dict[str, torch.Tensor]:
    return {batch["key"][0]: batch["panorama"][0] for batch in module.train_dataloader()}


@pytest.mark.parametrize(("face_size", "size"), [(16, (64, 32)), (9, (64, 32)), (8, (32, 16)), (4, (16, 8))])
def test_large_jpegs_are_decoded_at_a_reduced_size_in_training_and_validation(
    many: Path, face_size: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decoded_sizes(data(many, face_size=face_size), monkeypatch) == {size}
    assert decoded_sizes(data(many, face_size=face_size, jpeg_scaling=False), monkeypatch) == {(64, 32)}


def test_a_run_resumes_with_the_pixels_that_it_began_with(
    many: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first checkpoints do not have the key: their runs decoded at full size."""
    options = {"face_size": 8, "batch_size": 1}
    began_full, began_scaled = (data(many, jpeg_scaling=scaling, **options) for scaling in (False, True))
    first = {"seed": 0, "position": 0, "samples": began_full.samples("train")}
    for module, state in ((began_full, first), (began_scaled, first | {"jpeg_scaling": True})):
        expected = panoramas(module)
        for configured in (False, True):
            caplog.clear()
            resumed = data(many, jpeg_scaling=configured, **options)
            resumed.load_state_dict(state)
            assert resumed.jpeg_scaling == module.jpeg_scaling
            assert [str(configured).lower() in line for line in caplog.messages] == (
                [] if configured == module.jpeg_scaling else [True]
            )
            assert all(torch.equal(image, expected[key]) for key, image in panoramas(resumed).items())
    sizes = decoded_sizes(began_full, monkeypatch), decoded_sizes(began_scaled, monkeypatch)
    assert sizes == ({(64, 32)}, {(32, 16)})


# ---- the training stream -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_training_shows_every_panorama_equally_often(many: Path, workers: int) -> None:
    """Across epoch boundaries the stream shows every sample before it repeats one."""
    module = data(many, num_workers=workers, batch_size=3, shuffle_buffer=5)
    total = module.samples("train")
    loader = module.train_dataloader()
    epochs = [keys(loader) for _ in range(12)]
    assert {len(epoch) for epoch in epochs} == {total // 3 * 3}
    counts = Counter(itertools.chain(*epochs))
    assert len(counts) == total
    shown = 12 * (total // 3 * 3) / total
    assert {*counts.values()} <= {math.floor(shown), math.ceil(shown)}
    assert len({tuple(epoch) for epoch in epochs}) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_is_a_function_of_the_seed(many: Path, workers: int) -> None:
    def stream(**options: Any) -> list[tuple]:
        module = data(many, **{"num_workers": workers} | options)
        loader = module.train_dataloader()
        return [(b["key"], b["yaw"].tolist(), b["prompts"]) for _ in range(2) for b in loader]

    first = stream()
    assert stream() == first
    assert stream(num_workers=3 - workers) == first  # and of nothing else
    others = [stream(seed=1), stream(rank=1, world=2), stream(position=100)]
    assert all(other != first for other in others)
    assert others[0] != others[1] != others[2]


def test_two_workers_and_two_ranks_share_one_shard(tmp_path: Path) -> None:
    """One shard for four readers: all get samples, and none gets a sample twice."""
    path = shards(tmp_path, 12, shard_size=12)
    epochs: list[list[str]] = [[], []]
    for rank in range(2):
        loader = data(path, rank, 2, num_workers=2, batch_size=1).train_dataloader()
        for epoch in epochs:
            read_keys = keys(loader)
            assert len(read_keys) == 12 // 2
            epoch += read_keys
    assert [sorted(epoch) for epoch in epochs] == [[f"{i:03d}" for i in range(12)]] * 2


@pytest.mark.parametrize("world", [1, 3])
def test_an_epoch_has_as_many_batches_as_the_samples_fill_on_all_ranks(many: Path, world: int) -> None:
    module = data(many, 0, world, batch_size=2)
    loader = module.train_dataloader()
    assert len(loader) == module.samples("train") // (2 * world) == len(list(loader))
    assert len(list(data(many, batch_size=1000).train_dataloader())) == 1


def test_an_epoch_is_rounded_up_to_whole_optimizer_steps(tmp_path: Path) -> None:
    """Lightning steps at the end of an epoch with incomplete accumulation: five batches at three a step become six."""
    module = data(shards(tmp_path, 5), batch_size=1)
    module.trainer.accumulate_grad_batches = 3
    assert len(module.train_dataloader()) == 6


def test_a_batch_larger_than_the_data_is_filled(tmp_path: Path) -> None:
    (batch,) = data(shards(tmp_path, 3), batch_size=8).train_dataloader()
    assert len(batch["key"]) == 8
    assert set(batch["key"]) == {"000", "001", "002"}


# ---- validation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_validation_shows_every_panorama_once_over_all_readers(many: Path, world: int, workers: int) -> None:
    parts = []
    for rank in range(world):
        module = data(many, rank, world, num_workers=workers, batch_size=3)
        loader = module.val_dataloader()
        for _ in range(2):  # a second epoch shows the same
            batches = list(loader)
            assert len(batches) == len(loader)
            read_keys = keys(batches)
        parts.append(read_keys)
        assert all(yaw == 0 for batch in batches for yaw in batch["yaw"])
        for batch in batches:
            assert batch["counted"]
            assert batch["prompts"] == [[f"panorama {key}"] * 6 for key in batch["key"]]
    everything = list(itertools.chain(*parts))
    assert len(everything) == len(set(everything)) == module.samples("val")
    training = set(keys(data(many, batch_size=1).train_dataloader()))
    assert training.isdisjoint(everything)


def test_more_workers_than_shards_or_panoramas_lose_nothing(tmp_path: Path) -> None:
    path = shards(tmp_path, 3, val=0.4, shard_size=100)
    module = data(path, num_workers=4)
    assert module.samples("val") < 4
    assert len(keys(module.val_dataloader())) == module.samples("val")


def test_all_ranks_have_the_same_number_of_validation_batches(tmp_path: Path) -> None:
    path = shards(tmp_path, 12, val=0.4)
    total = data(path).samples("val")
    for world, size in itertools.product((2, 3, total + 2), (1, 2)):
        ranks = [list(data(path, rank, world, batch_size=size).val_dataloader()) for rank in range(world)]
        assert len({len(batches) for batches in ranks}) == 1
        counted = [batch for batches in ranks for batch in batches if batch["counted"]]
        assert sorted(keys(counted)) == sorted(set(keys(data(path).val_dataloader())))
        assert sorted(p for batch in counted for p in batch["position"]) == list(range(total))


def test_examples_are_the_same_on_every_rank(tmp_path: Path) -> None:
    path = shards(tmp_path, 12, val=0.4)
    first = keys(data(path).val_dataloader())
    for rank in range(3):
        assert data(path, rank, 3).examples(2)["key"] == first[:2]
    assert data(path).examples(100)["key"] == first
    assert data(shards(tmp_path / "none", 3)).examples(2) is None


def test_limit_val_takes_the_first(many: Path) -> None:
    all_of_them = keys(data(many).val_dataloader())
    assert keys(data(many, limit_val=3).val_dataloader()) == all_of_them[:3]
    assert keys(data(many, limit_val=1000).val_dataloader()) == all_of_them


def test_no_validation_panoramas_give_no_loader(tmp_path: Path) -> None:
    assert data(shards(tmp_path, 3)).val_dataloader() == []


# ---- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_samples_are_skipped_counted_and_logged(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = shards(tmp_path, 6, shard_size=6)
    spoil(path / "train-000000.tar", "002.jpg", "004.json")
    module = data(path, num_workers=workers, batch_size=4, max_skipped_share=1.0)
    with caplog.at_level(logging.WARNING):
        read_keys = Counter(keys(itertools.chain(*[module.train_dataloader()] * 6)))
    assert set(read_keys) == {"000", "001", "003", "005"}
    assert module.skipped >= 4
    messages = [r.getMessage() for r in caplog.records]
    assert "1 samples skipped so far" in messages[0]
    assert "train-000000.tar" in messages[0]
    assert len(messages) <= 3


def test_a_damaged_tar_header_skips_only_its_own_sample(tmp_path: Path) -> None:
    """A sequential reader would lose all samples that follow; the index finds them."""
    path = shards(tmp_path, 8, val=0.0, shard_size=4)
    with tarfile.open(path / "train-000000.tar") as tar:
        members = tar.getmembers()
    with (path / "train-000000.tar").open("r+b") as file:
        file.seek(members[4].offset)
        file.write(b"x" * 512)
    module = data(path, batch_size=6, max_skipped_share=1.0)
    lost = members[4].name.partition(".")[0]
    read_keys = set(keys(itertools.chain(*[module.train_dataloader()] * 8)))
    assert read_keys == {f"{i:03d}" for i in range(8)} - {lost}
    assert module.skipped == 8 * 6 // 8


def test_validation_skips_damaged_samples_and_training_without_readable_ones_is_an_error(tmp_path: Path) -> None:
    path = shards(tmp_path, 6, val=0.4, shard_size=6)
    for name in ("train", "val"):
        with tarfile.open(path / f"{name}-000000.tar") as tar:
            names = [n for n in tar.getnames() if n.endswith(".jpg")]
        spoil(path / f"{name}-000000.tar", *(names if name == "train" else names[:1]))
    module = data(path, max_skipped_share=1.0)
    assert len(keys(module.val_dataloader())) == module.samples("val") - 1
    assert module.skipped == 1
    with pytest.raises(DataError, match="samples in a row were skipped"):
        list(module.train_dataloader())


def test_a_folder_without_a_complete_dataset_is_refused_before_training(tmp_path: Path, many: Path) -> None:
    with pytest.raises(DataError, match=r"holds no manifest\.json.*data\.path="):
        data(tmp_path)
    (tmp_path / "notes.txt").touch()
    for path, problem in ((tmp_path / "nowhere", "does not exist"), (tmp_path / "notes.txt", "is a file and no tar")):
        with pytest.raises(DataError, match=rf"^data\.path={path} {problem}: set data\.path to a folder of shards"):
            data(path)
    last = len(list(many.glob("train-*.tar")))
    with pytest.raises(DataError, match=rf"/train-{last:06d}\.tar does not exist: copy it there, or set data\.path to"):
        data(f"{many}/train-{{000000..{last:06d}}}.tar")
    (tmp_path / "settings.json").touch()
    with pytest.raises(DataError, match="its latents was interrupted; complete it with the same cubediff cache"):
        data(tmp_path)
    shutil.copytree(many, tmp_path / "copy")
    shard = tmp_path / "copy" / "train-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1000])
    with pytest.raises(DataError, match=r"train-000001\.tar has \d+ bytes instead of"):
        data(tmp_path / "copy")
    shard.unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar is missing although manifest\.json lists it: copy"):
        data(tmp_path / "copy")
    manifest = tmp_path / "copy" / "manifest.json"
    manifest.write_text('{"format": "cubediff-shards", "version": 99}')
    with pytest.raises(DataError, match=r"format 99, this one reads up to 2\): upgrade cubediff"):
        data(tmp_path / "copy")
    manifest.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        data(tmp_path / "copy")


@pytest.mark.parametrize(
    "option",
    [
        {"batch_size": 0},
        {"yaw": "random"},
        {"face_caption_probability": 1.5},
        {"face_caption_jitter": 50.0},
        {"flip": 1.5},
        {"limit_val": 0},
        {"num_workers": -1},
        {"stages": [3]},
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(option))):
        PanoramaDataModule(tmp_path, **{"batch_size": 2, "face_size": 16} | option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"share": 1.5}, "share must be in [0, 1], got 1.5"),
        ({"fov": (90.0, 40.0)}, "fov must be two angles in (0, 180) degrees in ascending order, got [90.0, 40.0]"),
        ({"fov": (0.0, 40.0)}, "fov must be two angles in (0, 180) degrees in ascending order, got [0.0, 40.0]"),
        ({"fov": (40.0,)}, "fov must be two angles in (0, 180) degrees in ascending order, got [40.0]"),
        ({"pitch": -1.0}, "pitch must be in [0, 90] degrees, got -1.0"),
        ({"roll": 181.0}, "roll must be in [0, 180] degrees, got 181.0"),
        ({"aspects": (0.0,)}, "aspects must be a list of positive numbers, got [0.0]"),
        ({"aspects": ()}, "aspects must be a list of positive numbers, got []"),
    ],
)
def test_photos_out_of_range_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RandomPhotos(**option)


# ---- with Lightning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_trains_and_validates(many: Path, workers: int) -> None:
    before = set(multiprocessing.active_children())
    model, trainer = fit(many, 9, num_workers=workers)
    assert set(multiprocessing.active_children()) <= before  # the workers have ended with the training
    assert [len(step.keys) for step in model.steps] == [2] * 9
    assert set(model.validated) == set(keys(data(many).val_dataloader()))
    assert trainer.datamodule.state_dict() == {
        "seed": 0,
        "position": 18,
        "samples": trainer.datamodule.samples("train"),
        "jpeg_scaling": True,
    }
