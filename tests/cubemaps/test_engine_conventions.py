"""Conventions of engines, by how each looks a direction up: every texel of a direction-coded cube is compared, in
float64, with the direction that the engine's own rule gives it."""

import math
from pathlib import Path

import numpy as np
import py360convert
import pytest
import torch

from cubediff.cubemaps.conventions import CONVENTIONS, check_layout, engine_images, layout_images, layout_of
from cubediff.cubemaps.layouts import from_engine, from_layout, to_engine, to_layout
from cubediff.geometry import FACES, equirect_to_cube, equirect_to_perspective, face_directions
from cubediff.utils.errors import DataError

SIZE = 6
CUBE = dict(zip(FACES, face_directions(SIZE, 90.0, torch.float64).numpy(), strict=True))
# Where a viewer of each engine finds this project's x (right), y (up) and z (forward) in its world.
WORLDS = {
    "opengl": lambda x, y, z: (x, y, z),
    "three": lambda x, y, z: (x, y, -z),  # right-handed: the camera looks along −z
    "unity": lambda x, y, z: (x, y, z),  # left-handed, forward +z
    "unreal": lambda x, y, z: (z, x, y),  # left-handed, forward +x, right +y, up +z
}


def texel_ray(face: int, row: int, column: int) -> list[float]:
    """The direction that the OpenGL specification's table maps to a texel of +x −x +y −y +z −z."""
    sc, tc = (2 * column + 1) / SIZE - 1, (2 * row + 1) / SIZE - 1
    return [[1, -tc, -sc], [-1, -tc, sc], [sc, 1, tc], [sc, -1, -tc], [sc, -tc, 1], [-sc, -tc, -1]][face]


@pytest.mark.parametrize("convention", WORLDS)
def test_every_texel_shows_the_direction_that_the_engine_looks_up(convention: str) -> None:
    images = list(to_engine(CUBE, engine_images(convention)).values())
    for face, row, column in np.ndindex(6, SIZE, SIZE):
        x, y, z = images[face][row, column]
        seen = list(WORLDS[convention](x, y, z))
        if convention == "three":  # textureCube(envMap, vec3(-direction.x, direction.yz))
            seen[0] = -seen[0]
        expected = np.array(texel_ray(face, row, column))
        np.testing.assert_allclose(seen, expected / np.linalg.norm(expected), atol=1e-12)


def test_files_named_by_an_axis_look_along_it() -> None:
    for convention, world in {**WORLDS, "blender": lambda x, y, z: (z, -x, y)}.items():
        named = to_engine(CUBE, engine_images(convention))
        for name, image in named.items():
            axis, sign = ("xyz".index(name[-1].lower()), 1 if "p" in name[:1] or "+" in name else -1)
            centre = world(*image.mean((0, 1)))
            if convention == "three" and axis == 0:  # +x of a cube map is −x of the scene
                sign = -sign
            assert np.sign(centre[axis]) == sign, (convention, name)
            assert abs(centre[axis]) > 0.5, (convention, name)


def test_unreal_rotations_are_those_of_its_manual() -> None:
    """Upright camera views along Unreal's axes, rotated as the page "Creating Cubemaps" says."""
    views = {"front": CUBE["front"], "back": CUBE["back"], "right": CUBE["right"], "left": CUBE["left"]}
    named = to_engine(CUBE, engine_images("unreal"))
    turns = {"px": ("front", 1), "nx": ("back", -1), "py": ("right", 2), "ny": ("left", 0)}  # counterclockwise
    for name, (face, turn) in turns.items():
        np.testing.assert_array_equal(named[name], np.rot90(views[face], turn))
    for name in ("pz", "nz"):  # the side that touches +y, which is right, is at the top
        assert (named[name][0, :, 0] > 0.5).all(), name


def test_pannellum_looks_up_yaw_and_pitch() -> None:
    """libpannellum.js: images 0 to 5 are +z, +x, −z, −x, +y, −y of the cube map, which is looked up at
    (cos φ sin λ, sin φ, cos φ cos λ) for the yaw λ to the right and the pitch φ."""
    images = list(to_engine(CUBE, engine_images("pannellum")).values())
    for place, face in enumerate((4, 0, 5, 1, 2, 3)):  # of texel_ray
        for row, column in np.ndindex(SIZE, SIZE):
            x, y, z = texel_ray(face, row, column)
            yaw, pitch = math.atan2(x, z), math.atan2(y, math.hypot(x, z))
            rx, ry, rz = images[place][row, column]
            assert math.atan2(rx, rz) == pytest.approx(yaw, abs=1e-12)
            assert math.atan2(ry, math.hypot(rx, rz)) == pytest.approx(pitch, abs=1e-12)


def test_blender_images_agree_with_its_environment_texture() -> None:
    """gpu_shader_material_tex_environment: u = ½ − atan2(y, x)/2π, and from below v = ½ + atan2(z, hypot(x, y))/π."""
    named = to_engine(CUBE, engine_images("blender"))
    for name, image in named.items():
        axis, sign = "xyz".index(name[1]), 1 if name[0] == "p" else -1
        for row, column in np.ndindex(SIZE, SIZE):
            x, y, z = image[row, column]
            direction = np.array([z, -x, y])  # in Blender's world
            assert direction[axis] * sign == pytest.approx(np.abs(direction).max())
            u = 0.5 - math.atan2(direction[1], direction[0]) / math.tau
            v = 0.5 + math.atan2(direction[2], math.hypot(direction[0], direction[1])) / math.pi
            panorama_yaw, panorama_pitch = (u - 0.5) * math.tau, (v - 0.5) * math.pi
            assert math.atan2(x, z) == pytest.approx(panorama_yaw, abs=1e-12)
            assert math.atan2(y, math.hypot(x, z)) == pytest.approx(panorama_pitch, abs=1e-12)
    for name in ("px", "nx", "py", "ny"):  # upright: z grows to the top
        assert (np.diff(named[name][:, SIZE // 2, 1]) < 0).all()


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("layout", ["cross", "cross-vertical", "strip"])
def test_layouts_and_conventions_are_inverted(convention: str, layout: str) -> None:
    images = engine_images(convention)
    assert sorted(image.face for image in images) == sorted(FACES)
    for back in (
        from_engine(to_engine(CUBE, images), images),
        from_layout(to_layout(CUBE, layout, images), images)[0],
    ):
        assert list(back) == list(FACES)
        for face in FACES:
            np.testing.assert_array_equal(back[face], CUBE[face])


def test_cells_of_a_cross_touch_where_the_faces_do() -> None:
    """In the horizontal cross, a pixel's neighbour across a cell's border looks at most two pixels away."""
    for layout in ("cross", "cross-vertical"):
        image = to_layout(CUBE, layout, engine_images("cubediff"))
        for axis in (0, 1):
            a, b = (np.take(image, range(start, image.shape[axis] - 1 + start), axis) for start in (0, 1))
            filled = (np.abs(a).sum(-1) > 0) & (np.abs(b).sum(-1) > 0)
            angles = np.degrees(np.arccos(np.clip((a * b).sum(-1)[filled], -1, 1)))
            assert angles.max() < 2 * 90 / SIZE


def test_the_middle_of_a_cross_is_what_a_camera_sees() -> None:
    panorama = torch.from_numpy(np.random.default_rng(0).random((1, 3, 64, 128)))
    views = [
        equirect_to_perspective(panorama, 16, 90.0, torch.tensor(yaw, dtype=torch.float64), pitch)
        for yaw, pitch in ((0.0, 0.0), (90.0, 0.0), (180.0, 0.0), (-90.0, 0.0), (0.0, 90.0), (0.0, -90.0))
    ]
    front, right, back, left, up, down = (view[0].permute(1, 2, 0).numpy() for view in views)
    cube = dict(zip(FACES, (front, right, back, left, up, down), strict=True))
    cross = to_layout(cube, "cross", engine_images("cubediff"))
    assert cross.shape == (48, 64, 3)
    np.testing.assert_array_equal(cross[16:32], np.concatenate([left, front, right, back], 1))
    np.testing.assert_array_equal(cross[:, 16:32], np.concatenate([up, front, down]))
    assert not cross[:16, :16].any()
    vertical = to_layout(cube, "cross-vertical", engine_images("cubediff"))
    np.testing.assert_array_equal(vertical[:, 16:32], np.concatenate([up, front, down, back[::-1, ::-1]]))
    assert [image.quarter_turns for image in layout_images("cross-vertical", engine_images("three"))] == [0] * 5 + [2]


def test_the_cross_and_the_strip_are_those_of_py360convert() -> None:
    yaw, pitch = np.meshgrid(np.linspace(-np.pi, np.pi, 256, endpoint=False), np.linspace(1.5, -1.5, 128))
    panorama = np.stack([np.sin(3 * yaw) * np.cos(pitch), np.cos(yaw + 2 * pitch), np.sin(pitch)], -1) * 100 + 120
    tensor = torch.from_numpy(panorama).permute(2, 0, 1)[None]
    faces = equirect_to_cube(tensor, 64, 90.0)[0].permute(0, 2, 3, 1).numpy()
    cube = dict(zip(FACES, faces, strict=True))
    for layout, name in (("dice", "dice"), ("strip", "horizon")):
        theirs = py360convert.e2c(panorama, 64, cube_format=name)
        ours = to_layout(cube, check_layout(layout), engine_images("cubediff"))
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).mean() < 2  # half a pixel; 30 with one face flipped


def test_unknown_names_and_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="unknown convention 'godot': use one of cubediff, three, opengl"):
        engine_images("godot")
    with pytest.raises(DataError, match="unknown layout 'net': use one of faces, cross, cross-vertical, strip, dice"):
        check_layout("net")
    with pytest.raises(DataError, match="20x10 is not a cubemap"):
        from_layout(np.zeros((10, 20)), engine_images("cubediff"))
    assert layout_of(20, 10) is None


def test_the_documented_table_is_that_of_the_code() -> None:
    rows = {}
    for line in (Path(__file__).parents[2] / "docs/faces.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and (name := cells[0].strip("`")) in CONVENTIONS:
            rows[name] = cells[1]
    turned = {0: "", 1: " (90° CCW)", 2: " (180°)", 3: " (270° CCW)"}
    assert rows == {
        name: ", ".join(
            image.name + (f" {image.face}{turned[image.quarter_turns]}" if image.name != image.face else "")
            for image in images
        )
        for name, images in CONVENTIONS.items()
    }
