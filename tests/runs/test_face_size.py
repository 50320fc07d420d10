"""A run trains, samples and exports at its face size, and its export generates at that size."""

import json
from pathlib import Path

import pytest
from PIL import Image
from support.runs import QUICK, composed, train

from cubediff import CubeDiffPipeline
from cubediff.pipelines.loading import tiny_random
from cubediff.runs.fit import fit

WITH_SAMPLES = ("trainer.val_check_interval=2", "callbacks.samples.count=1")


@pytest.mark.parametrize(("face_size", "extra"), [(96, ()), (32, ("model.trainable=lora", "callbacks.ema=null"))])
def test_samples_and_export_have_the_size_of_the_trained_faces(
    face_size: int, extra: tuple[str, ...], tiny_shards: Path, tmp_path: Path
) -> None:
    """The base model is for 64 pixels."""
    run = train(tiny_shards, tmp_path / "run", f"face_size={face_size}", *WITH_SAMPLES, *extra)
    strips = list((run / "samples").glob("*_faces.jpg"))
    assert len(strips) == 2  # from text, and from text and photo
    for strip in strips:
        with Image.open(strip) as image:
            assert image.size == (6 * face_size, face_size)
    config = json.loads((run / "export/unet/config.json").read_text())
    assert config["sample_size"] == face_size // 8
    pipeline = CubeDiffPipeline.from_pretrained(run / "export")
    generated = pipeline("a room", num_inference_steps=1, output_type="pt")
    assert generated.faces.shape == (1, 6, 3, face_size, face_size)
    assert generated.panoramas.shape == (1, 3, 2 * face_size, 4 * face_size)


def test_a_network_without_its_shards_keeps_the_size() -> None:
    backbone = tiny_random().backbone
    backbone.set_face_size_(128)
    fresh = backbone.fresh_network(backbone.network.state_dict())
    assert fresh.config.sample_size == 16


@pytest.mark.parametrize("face_size", [100, 4])
def test_a_size_that_the_latents_cannot_have_is_refused(face_size: int, tiny_shards: Path, tmp_path: Path) -> None:
    config = composed(*QUICK, f"data.path={tiny_shards}", f"face_size={face_size}", run_dir=tmp_path)
    with pytest.raises(ValueError, match=rf"^face_size={face_size}: expected a multiple of 8"):
        fit(config, tmp_path)
