"""Editing a panorama: kept pixels are the input's own, the others are generated, and no edge shows between them."""

import math
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.awake import awake_pipeline
from support.image_files import DISPLAY_P3, icc
from support.pictures import SAMPLES, picture
from torch import Tensor

from cubediff import CubeDiffPipeline, Panorama, Photo
from cubediff.geometry import equirect_to_cube, face_directions
from cubediff.geometry.panoramas import project_panorama
from cubediff.geometry.photos import project_photos
from cubediff.images.canvas import open_canvas
from cubediff.models.backbone import CubeInput
from cubediff.models.inputs import latent_mask
from cubediff.models.stable_diffusion import StableDiffusion
from cubediff.pipelines.editing import composite

ROWS, COLUMNS = 96, 192
PITCH = 90 - (np.arange(ROWS) + 0.5)[:, None] / ROWS * 180 + np.zeros((1, COLUMNS))
YAW = ((np.arange(COLUMNS) + 0.5) / COLUMNS - 0.5) * 360 + np.zeros((ROWS, 1))
NADIR = PITCH < -50
REGION = (np.abs(PITCH) < 25) & (np.abs(YAW) > 150)  # across the left and right edge
STRIP = np.abs(YAW - 60) < 20


@pytest.fixture(scope="module")
def pipeline() -> CubeDiffPipeline:
    """A pipeline whose weights are random, so that condition, prompt and noise all have an effect."""
    return awake_pipeline()


def scene(dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """A panorama of soft spots (96, 192, 3), in uint8, uint16, or float in [0, 1]."""
    levels = np.array(picture(seed, COLUMNS, ROWS))
    if dtype is np.uint8:
        return levels
    noise = np.random.default_rng(seed).random(levels.shape)
    exact = (levels + noise) / 256
    return (exact * 65535).astype(np.uint16) if dtype is np.uint16 else exact.astype(np.float32)


def edit(pipeline: CubeDiffPipeline, image: object, output_type: str = "np", prompt: str | None = None, **options):
    generator = torch.Generator().manual_seed(options.pop("seed", 0))
    return pipeline(prompt, image=image, num_inference_steps=2, output_type=output_type, generator=generator, **options)


# ------------------------------------------------------------------------------------------------ kept pixels


@pytest.mark.parametrize("mask", [NADIR, REGION, STRIP], ids=["nadir", "region", "strip"])
def test_kept_pixels_of_8_bits_do_not_change_and_the_others_do(pipeline, mask: np.ndarray) -> None:
    result = edit(pipeline, Panorama(PIL.Image.fromarray(scene()), PIL.Image.fromarray(mask)), "pil").panoramas[0]
    edited = np.asarray(result)
    np.testing.assert_array_equal(edited[~mask], scene()[~mask])
    assert (edited[mask] != scene()[mask]).any(-1).mean() > 0.95
    assert np.abs(edited[mask] / 255 - scene()[mask] / 255).mean() > 0.05


def test_kept_pixels_have_every_bit_in_every_form(pipeline) -> None:
    for dtype in (np.uint8, np.uint16):
        given, top = scene(dtype), np.iinfo(dtype).max
        arrays = edit(pipeline, Panorama(given, NADIR)).panoramas
        np.testing.assert_array_equal(np.round(arrays[0].astype(np.float64) * top)[~NADIR], given[~NADIR])
        tensors = edit(pipeline, Panorama(given, NADIR), "pt").panoramas
        levels = torch.round((tensors[0].double() + 1) / 2 * top).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(levels[~NADIR], given[~NADIR])
    floats = scene(np.float32)
    np.testing.assert_array_equal(edit(pipeline, Panorama(floats, NADIR)).panoramas[0][~NADIR], floats[~NADIR])
    tensor, mask = torch.from_numpy(floats).permute(2, 0, 1) * 2 - 1, torch.from_numpy(NADIR)
    result = edit(pipeline, Panorama(tensor, mask), "pt").panoramas[0]
    assert torch.equal(result[:, ~mask], tensor[:, ~mask])
    assert torch.equal(edit(pipeline, Panorama(tensor, mask[None].float()), "pt").panoramas[0], result)


def test_files_are_read_in_their_depth(pipeline, tmp_path: Path) -> None:
    given = scene(np.uint16)
    cv2.imwrite(str(tmp_path / "p.png"), given[..., ::-1])
    PIL.Image.fromarray(REGION).save(tmp_path / "m.png")
    result = edit(pipeline, Panorama(tmp_path / "p.png", str(tmp_path / "m.png"))).panoramas[0]
    np.testing.assert_array_equal(np.round(result.astype(np.float64) * 65535)[~REGION], given[~REGION])


def test_pil_images_of_16_bits_are_refused_before_sampling(pipeline) -> None:
    with pytest.raises(ValueError, match='16 bits a channel, PIL images have 8: use output_type="np" or "pt"'):
        edit(pipeline, Panorama(scene(np.uint16), NADIR), "pil")


def test_a_colour_space_is_kept_and_generated_colours_are_converted_to_it(pipeline, tmp_path: Path) -> None:
    PIL.Image.fromarray(scene()).save(tmp_path / "p3.png", icc_profile=icc(DISPLAY_P3))
    PIL.Image.fromarray(scene()).save(tmp_path / "srgb.png")
    wide, plain = (edit(pipeline, Panorama(tmp_path / f"{name}.png", NADIR), "pil") for name in ("p3", "srgb"))
    assert wide.panoramas[0].info["icc_profile"] == icc(DISPLAY_P3)
    assert "icc_profile" not in plain.panoramas[0].info
    np.testing.assert_array_equal(np.asarray(wide.panoramas[0])[~NADIR], scene()[~NADIR])
    # The upper part of the front face shows kept pixels alone, and faces are sRGB.
    canvas = open_canvas(tmp_path / "p3.png", NADIR)
    srgb = torch.from_numpy(canvas.to_srgb(canvas.scaled())).permute(2, 0, 1)[None]
    expected = equirect_to_cube(srgb, 64, 95.0, mode="bicubic")[0, 0].permute(1, 2, 0)
    front = torch.from_numpy(np.asarray(wide.faces[0][0]) / 127.5 - 1)
    assert (front - expected).abs()[:40].mean() < 0.01


def test_faces_show_the_edited_panorama(pipeline) -> None:
    result = edit(pipeline, Panorama(scene(), NADIR), "pt")
    expected = equirect_to_cube(result.panoramas, 64, 95.0, mode="bicubic").clamp(-1, 1)
    torch.testing.assert_close(result.faces, expected)


def test_the_result_has_the_size_of_the_panorama(pipeline) -> None:
    for rows in (50, 96, 200):
        given = np.asarray(picture(0, 2 * rows, rows))
        mask = np.zeros((rows, 2 * rows), bool)
        mask[rows // 4 :, : rows // 2] = True
        result = edit(pipeline, Panorama(given, mask), "pil").panoramas[0]
        assert result.size == (2 * rows, rows)
        np.testing.assert_array_equal(np.asarray(result)[~mask], given[~mask])
    with pytest.raises(ValueError, match="height=64 and a Panorama of height 96: omit the height"):
        edit(pipeline, Panorama(scene(), NADIR), panorama_height=64)


# ------------------------------------------------------------------------------------------------- what is generated


def test_what_the_panorama_shows_in_the_pixels_to_repaint_has_no_effect(pipeline) -> None:
    other = scene()
    other[REGION] = 255 - other[REGION]
    one, two = (edit(pipeline, Panorama(given, REGION)).panoramas for given in (scene(), other))
    np.testing.assert_array_equal(one, two)


def test_prompt_seed_photos_and_kept_pixels_change_what_is_generated(pipeline) -> None:
    photo = Photo(picture(3), fov=80.0, yaw=180.0)
    panorama = Panorama(scene(), REGION)
    results = [
        edit(pipeline, panorama),
        edit(pipeline, panorama, seed=1),
        edit(pipeline, panorama, prompt="a red door"),
        edit(pipeline, [panorama, photo]),
        edit(pipeline, [panorama, photo], paste_image=True),
        edit(pipeline, Panorama(scene(seed=1), REGION)),
    ]
    painted = [result.panoramas[0][REGION] for result in results]
    for i, one in enumerate(painted):
        assert all(np.abs(one - other).mean() > 1e-3 for other in painted[:i])
    for result in results[:5]:
        np.testing.assert_array_equal(np.round(255 * result.panoramas[0])[~REGION], scene()[~REGION])


def test_a_photo_in_the_pixels_to_repaint_is_pasted_there(pipeline) -> None:
    """With paste_image its own pixels are in the panorama, away from the kept ones."""
    red = Photo(torch.tensor([1.0, -1, -1]).view(3, 1, 1).expand(3, 64, 64), fov=80.0, yaw=180.0)
    result = edit(pipeline, [Panorama(scene(), np.abs(YAW) > 90), red], paste_image=True).panoramas[0]
    inside = (np.abs(YAW) > 170) & (np.abs(PITCH) < 10)
    np.testing.assert_allclose(result[inside], np.broadcast_to([1, 0, 0], result[inside].shape), atol=0.02)


def test_kept_pixels_win_over_photos() -> None:
    photo = Photo(torch.ones(3, 64, 64), fov=95.0)
    panorama = Panorama(torch.full((3, ROWS, COLUMNS), -0.5), torch.from_numpy(YAW > 10))
    for images in ([panorama, photo], [photo, panorama]):
        faces, covered = project_photos([images], 64, 95.0)
        _, kept = project_panorama(panorama, 64, 95.0)
        assert (faces[0].masked_select(kept) + 0.5).abs().max() < 1e-5
        assert (faces[0, 0].masked_select(~kept[0]) == 1).all()
        assert covered[0, 0].all()
        assert torch.equal(covered[0, 1:], kept[1:])


def test_several_panoramas_are_edited_in_one_call(pipeline) -> None:
    images = [[Panorama(scene(), NADIR)], [Panorama(scene(seed=1), REGION), Photo(picture(3), fov=60.0)], [picture(2)]]
    result = edit(pipeline, images, num_images_per_prompt=2, prompt="a hall").panoramas
    assert result.shape == (6, ROWS, COLUMNS, 3)
    for row in range(4):
        mask = (NADIR, REGION)[row // 2]
        np.testing.assert_array_equal(np.round(255 * result[row])[~mask], scene(seed=row // 2)[~mask])
    assert np.abs(result[0] - result[1])[NADIR].mean() > 1e-3
    small = Panorama(scene()[::2, ::2], NADIR[::2, ::2])
    with pytest.raises(ValueError, match=r"Panoramas of the heights \[48, 96\] in one call: call once for each size"):
        edit(pipeline, [images[0], [small]])
    with pytest.raises(ValueError, match="several Panoramas for one panorama"):
        edit(pipeline, [[Panorama(scene(), NADIR), Panorama(scene(), REGION)]])
    assert len(edit(pipeline, [Panorama(scene(), NADIR), Panorama(scene(), REGION)]).panoramas) == 2


@pytest.mark.parametrize("photos", [[], [Photo(picture(3), fov=60.0, yaw=180.0)]], ids=["alone", "with a photo"])
def test_the_network_sees_kept_pixels_in_the_sample_and_photos_in_the_mask_channel(
    pipeline, monkeypatch, photos
) -> None:
    """Kept latents follow the trajectory of their noise; guidance leads towards text and photos alone."""
    inputs: list[tuple[CubeInput, Tensor]] = []
    predict = StableDiffusion.predict
    monkeypatch.setattr(
        StableDiffusion,
        "predict",
        lambda self, cube, t, text: inputs.append((cube, t)) or predict(self, cube, t, text),
    )
    noise = torch.randn(1, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = [Panorama(scene(), REGION), *photos]
    final = edit(pipeline, [images], "latent", prompt="a hall", latents=noise).faces
    faces, covered = project_photos([images], 64, 95.0)
    known = latent_mask(covered, 8).bool().expand_as(final)
    clean = pipeline.backbone.encode(faces)
    assert 0.5 < known.float().mean() < 1
    torch.testing.assert_close(final[known], clean[known])
    seen = latent_mask(project_photos([photos], 64, 95.0)[1], 8) if photos else torch.zeros(1, 6, 1, 8, 8)
    for cube, t in inputs:
        trajectory = pipeline.scheduler.add_noise(clean, noise, t[None])
        for sample in cube.noisy:
            torch.testing.assert_close(sample[known[0]], trajectory[0][known[0]])
        unconditional, conditional = cube.mask
        assert torch.equal(conditional, seen[0])
        assert not unconditional.any()


def test_a_canvas_is_a_panorama_with_its_mask(pipeline) -> None:
    canvas = open_canvas(scene(), NADIR)
    expected = edit(pipeline, Panorama(scene(), NADIR)).panoramas
    np.testing.assert_array_equal(edit(pipeline, Panorama(canvas)).panoramas, expected)
    with pytest.raises(ValueError, match="a Canvas has its own mask"):
        edit(pipeline, Panorama(canvas, NADIR))


def test_latents_are_returned_without_the_panorama(pipeline) -> None:
    result = edit(pipeline, Panorama(scene(), NADIR), "latent")
    assert result.panoramas is None
    assert result.faces.shape == (1, 6, 4, 8, 8)


# -------------------------------------------------------------------------------------------- condition and border


@settings(max_examples=30, deadline=None)
@given(st.floats(-80, 80), st.floats(-180, 180), st.floats(15, 100))
def test_latent_pixels_that_are_kept_show_kept_pixels_alone(pitch: float, yaw: float, radius: float) -> None:
    """Against the directions of the face pixels, by their angle to the centre of the pixels to repaint."""
    axis = _direction(math.radians(yaw), math.radians(pitch))
    angles = np.degrees(np.arccos(np.clip(_direction(np.radians(YAW), np.radians(PITCH)) @ axis, -1, 1)))
    panorama = Panorama(scene(), angles < radius)
    _, kept = project_panorama(panorama, 64, 95.0)
    of_faces = torch.rad2deg(torch.arccos(face_directions(64, 95.0, torch.float64) @ torch.from_numpy(axis)))
    pixel = 180 / ROWS
    assert (of_faces[kept[:, 0]] > radius - pixel).all()
    assert (of_faces[~kept[:, 0]] < radius + 2 * pixel).all()
    known = latent_mask(kept[None], 8)[0, :, 0].repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert not (known.bool() & ~kept[:, 0]).any()


def _direction(yaw: np.ndarray | float, pitch: np.ndarray | float) -> np.ndarray:
    return np.stack(np.broadcast_arrays(np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)), -1)


@pytest.mark.parametrize("mask", [NADIR, REGION, STRIP], ids=["nadir", "region", "strip"])
def test_no_edge_shows_where_the_generated_colours_are_off(mask: np.ndarray) -> None:
    """The generated panorama is the scene in other colours; across the border its steps are those of the scene."""
    smooth = cv2.GaussianBlur(np.tile(scene(), (1, 3, 1)), (0, 0), 6)[:, COLUMNS : 2 * COLUMNS]
    canvas = open_canvas(smooth, mask)
    off = torch.from_numpy(canvas.scaled()).permute(2, 0, 1) * 0.6 + torch.tensor([0.3, -0.2, 0.1]).view(3, 1, 1)
    result = composite(off, canvas, feather=12).permute(1, 2, 0).numpy()
    hard = np.where(mask[..., None], off.permute(1, 2, 0).numpy(), canvas.scaled())
    steps = [_steps_across(image, mask) for image in (result, hard, canvas.scaled())]
    assert steps[0] < steps[2] + 0.03
    assert steps[1] > steps[2] + 0.15
    away = cv2.distanceTransform(np.tile(mask, (1, 3)).astype(np.uint8), cv2.DIST_L2, 5)[:, COLUMNS : 2 * COLUMNS] > 13
    np.testing.assert_allclose(result[away], off.permute(1, 2, 0).numpy()[away].clip(-1, 1), atol=1e-6)


def _steps_across(image: np.ndarray, mask: np.ndarray) -> float:
    """Mean difference of horizontal and vertical neighbours on different sides of the mask's border."""
    across = np.roll(mask, 1, 1) != mask
    down = mask[1:] != mask[:-1]
    steps = np.concatenate([np.abs(np.roll(image, 1, 1) - image)[across], np.abs(image[1:] - image[:-1])[down]])
    return float(steps.mean())


def test_a_repaint_that_agrees_with_the_panorama_changes_nothing() -> None:
    canvas = open_canvas(scene(), REGION)
    same = torch.from_numpy(canvas.scaled()).permute(2, 0, 1)
    torch.testing.assert_close(composite(same, canvas, feather=12), same, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_trained_model_continues_the_kept_pixels() -> None:
    """The repainted nadir of a real panorama is nearer to the real one than that of another scene is."""
    pipeline = CubeDiffPipeline.from_pretrained(Path(__file__).parents[2] / "experiments/cubediff_tiny/model")
    pipeline.set_progress_bar_config(disable=True)
    names = ("dikhololo_night", "rooitou_park", "dancing_hall")
    real = [np.asarray(PIL.Image.open(SAMPLES / f"{name}.jpg").resize((COLUMNS, ROWS))) for name in names]
    errors = np.zeros((len(names), len(names)))
    for i, levels in enumerate(real):
        painted = pipeline(
            image=Panorama(levels, NADIR),
            num_inference_steps=10,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).panoramas[0]
        errors[i] = [np.abs(painted - other / 255)[NADIR].mean() for other in real]
    assert (errors.argmin(1) == np.arange(len(names))).all(), errors
