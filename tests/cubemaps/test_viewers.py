"""three.js and Pannellum in Chromium show faces of their conventions in all directions, like this project's views."""

import base64
import io
import itertools
import math
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route

from cubediff.cubemaps.conventions import engine_images
from cubediff.cubemaps.conversion import Camera, PanoramaImage, to_cube, to_view
from cubediff.cubemaps.files import CubemapFormat, write_cubemap
from cubediff.geometry.conventions import sphere_directions
from cubediff.images.writing import encode_png

VERSIONS = {"three": "0.187.0", "pannellum": "2.5.7"}  # of npm
SIZE = 320  # pixels of a view
FOV = 60.0
DIRECTIONS = [d for d in itertools.product((-1, 0, 1), repeat=3) if any(d)]  # x right, y up, z forward

THREE_PAGE = """<!doctype html><style>body{margin:0}canvas{display:block}</style><script type="module">
import * as THREE from "/three/build/three.module.js";
const renderer = new THREE.WebGLRenderer();
renderer.setSize(%(size)d, %(size)d);
document.body.append(renderer.domElement);
const scene = new THREE.Scene();
const camera = new THREE.PerspectiveCamera(%(fov)f, 1);
camera.rotation.order = "YXZ";
scene.background = await new THREE.CubeTextureLoader().setPath("/faces/").loadAsync(%(files)s);
window.look = (yaw, pitch) => {
  camera.rotation.set(pitch * Math.PI / 180, -yaw * Math.PI / 180, 0);
  renderer.render(scene, camera);
  return renderer.domElement.toDataURL();
};
window.ready = true;
</script>"""
PANNELLUM_PAGE = """<!doctype html><link rel="stylesheet" href="/pannellum/build/pannellum.css">
<style>body{margin:0}#view{width:%(size)dpx;height:%(size)dpx}</style>
<div id="view"></div><script src="/pannellum/build/pannellum.js"></script><script>
const viewer = pannellum.viewer("view", {
  type: "cubemap", cubeMap: %(files)s.map(name => "/faces/" + name), autoLoad: true, showControls: false,
  hfov: %(fov)f, minHfov: 30});
viewer.on("load", () => {window.ready = true});
window.look = (yaw, pitch) => {viewer.lookAt(pitch, yaw, %(fov)f, false)};
</script>"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the viewers, from npm; nothing of them is part of this project."""
    if (npm := shutil.which("npm")) is None:
        pytest.skip("no npm on the PATH, which downloads the viewers")
    folder = tmp_path_factory.mktemp("npm")
    for name, version in VERSIONS.items():
        packed = subprocess.run(
            [npm, "pack", f"{name}@{version}"], cwd=folder, capture_output=True, text=True, timeout=120
        )
        if packed.returncode != 0:
            pytest.skip(f"npm does not reach its registry: {packed.stderr[-200:]}")
        with tarfile.open(folder / f"{name}-{version}.tgz") as tar:
            tar.extractall(folder, filter="data")
        (folder / "package").rename(folder / name)
    return folder


@pytest.fixture(scope="module")
def sphere() -> PanoramaImage:
    """A panorama whose colour is the direction."""
    return PanoramaImage(((sphere_directions(512).numpy() + 1) / 2 * 255).round().astype(np.uint8))


@pytest.fixture
def page(browser: Browser, packages: Path, sphere: PanoramaImage, tmp_path: Path) -> Iterator[Page]:
    """A page that finds the packages, and the faces of the convention that its URL names."""

    def serve(route: Route) -> None:
        convention, *path = route.request.url.split("/", 4)[3:]
        if convention == "faces":
            route.fulfill(path=tmp_path / "faces" / path[0])
        elif path:
            route.fulfill(path=packages / convention / path[0])
        else:
            names = [f"{image.name}.png" for image in engine_images(convention)]
            html = {"three": THREE_PAGE, "pannellum": PANNELLUM_PAGE}[convention]
            route.fulfill(content_type="text/html", body=html % {"size": SIZE, "fov": FOV, "files": names})

    opened = browser.new_page(viewport={"width": SIZE, "height": SIZE})
    opened.route("http://viewer.test/**", serve)
    yield opened
    opened.close()


def seen(page: Page, yaw: float, pitch: float) -> np.ndarray:
    """What the viewer shows: its canvas, or a screenshot."""
    url = page.evaluate("([yaw, pitch]) => window.look(yaw, pitch)", [yaw, pitch])
    if url is None:
        page.wait_for_timeout(300)
    png = page.screenshot() if url is None else base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("convention", VERSIONS)
def test_a_viewer_shows_every_direction(page: Page, sphere: PanoramaImage, tmp_path: Path, convention: str) -> None:
    cube = to_cube(sphere, 90.0, 256).cube
    write_cubemap(tmp_path / "faces", cube, CubemapFormat("faces", convention), encode_png)
    page.goto(f"http://viewer.test/{convention}")
    page.wait_for_function("window.ready === true")
    shown = []
    for x, y, z in DIRECTIONS:
        yaw, pitch = math.degrees(math.atan2(x, z)), math.degrees(math.atan2(y, math.hypot(x, z)))
        # At exactly 45°, corners of three.js' background box have w = 0, which the software renderer does not clip.
        yaw, pitch = yaw + 0.01, pitch * 0.9999
        image = seen(page, yaw, pitch)
        centre = image[SIZE // 2 - 2 : SIZE // 2 + 2, SIZE // 2 - 2 : SIZE // 2 + 2].mean((0, 1))
        direction = np.array([x, y, z]) / math.sqrt(x * x + y * y + z * z)
        np.testing.assert_allclose(centre, (direction + 1) / 2 * 255, atol=4, err_msg=f"{convention}, {x, y, z}")
        own = to_view(sphere, Camera(FOV, yaw, pitch), SIZE, SIZE).pixels.astype(int)
        assert np.abs(image - own).mean() < 2, (convention, x, y, z)  # neither mirrored nor rotated
        shown.append(image.astype(np.uint8))
    Image.fromarray(np.concatenate(shown[:9], 1)).save(tmp_path / "screenshots.png")
