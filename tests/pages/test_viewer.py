"""The viewer page in Chromium: every view shows the faces' content in its direction."""

import base64
import html
import io
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page

from cubediff.geometry import (
    FACES,
    equirect_to_cube,
    equirect_to_perspective,
    face_directions,
    rotation_matrix,
)
from cubediff.pages.viewer import viewer_html, write_viewer

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
LOOKS = {
    "front": (0, 0),
    "right": (90, 0),
    "back": (180, 0),
    "left": (-90, 0),
    "up": (0, 90),
    "down": (0, -90),
}
FRONT = {"yaw": 0, "pitch": 0, "fov": 90}
PANELS_HIDDEN = ".panel { visibility: hidden !important } #view { box-shadow: none !important }"
# Replaces the browser's frames by ones that the test requests, 16 ms apart.
MANUAL_FRAMES = """
const queue = [];
window.requestAnimationFrame = (draw) => queue.push(draw);
let time = 0;
window.drawFrames = (count) => Array.from({ length: count }, () => {
  time += 16;
  for (const draw of queue.splice(0)) draw(time);
  return cubediffViewer.getShown();
});
"""
HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror=\"window.hacked = 2\"> 'single' & &amp; "
    "{{faces}} ${window.hacked} <!-- \\u003c 永 \u202e"
)
SHOWN = HOSTILE.replace("\u202e", "\ufffd")  # it would turn the text after it around


Opener = Callable[..., Page]


@contextmanager
def opened(browser: Browser, folder: Path) -> Iterator[Opener]:
    """Opens viewers from file://, offline. Pages must request nothing else and log nothing on the console."""
    contexts, messages = [], []  # a page below 75 pixels is drawn once a second

    def opener(
        faces,
        *,
        width=128,
        height=128,
        hash="",
        before="",
        touch=False,
        ready=True,
        motion="reduce",
        **kwargs,
    ):
        path = write_viewer(folder / "a folder" / "viewer.html", faces, **kwargs)
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, offline=True, has_touch=touch, reduced_motion=motion)
        contexts.append(context)
        context.add_init_script(before)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: request.url.startswith("file:") or messages.append(request.url))
        page.goto(path.as_uri() + hash)
        assert page.evaluate("cubediffViewer.ready") is ready
        return page

    yield opener
    for context in contexts:
        context.close()
    assert messages == []


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Opener]:
    with opened(browser, tmp_path) as opener:
        yield opener


def screenshot(page: Page, yaw: float, pitch: float, fov: float) -> np.ndarray:
    """The pixels of a view on the screen, (H, W, 3), as float64 levels."""
    page.evaluate(f"cubediffViewer.setView({yaw}, {pitch}, {fov}); cubediffViewer.settled()")
    picture = page.screenshot(style=PANELS_HIDDEN, animations="disabled")
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=np.float64)


def view(page: Page) -> dict[str, float]:
    page.evaluate("cubediffViewer.settled()")
    return page.evaluate("cubediffViewer.getView()")


def directions(size: int, yaw: float, pitch: float, fov: float) -> np.ndarray:
    """Unit vectors through the pixels of a square view, in float64."""
    rays = face_directions(size, float(fov), torch.float64)[0]
    turn = rotation_matrix(torch.tensor(yaw, dtype=torch.float64), torch.tensor(pitch, dtype=torch.float64))
    return (rays @ turn.mT).numpy()


def world(rays: np.ndarray) -> np.ndarray:
    """A smooth sphere, different in every direction and channel, as float64 levels."""
    x, y, z = np.moveaxis(rays, -1, 0)
    waves = [2.3 * x + y * z + 0.4, 2.1 * y - 1.3 * z * x + 1.1, 2.7 * z + 0.9 * x - y]
    return 127.5 + 110 * np.sin(np.stack(waves, -1))


def world_faces(size: int, fov: float) -> np.ndarray:
    return world(face_directions(size, fov, torch.float64).numpy()).round().astype(np.uint8)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """Six faces of noise: all faces and corners differ."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


# ---- the file ----


def test_the_page_is_self_contained(noise: np.ndarray) -> None:
    page = viewer_html(noise)
    assert re.findall(r"\bhttps?:|@import|url\(", page) == []
    assert {link[:5] for link in re.findall(r'(?:src|href)="([^"]*)"', page)} == {"data:"}
    assert "{{" not in page


def test_images_arrays_and_tensors_give_the_same_page(noise: np.ndarray) -> None:
    page = viewer_html(noise)
    assert viewer_html([Image.fromarray(face) for face in noise]) == page
    tensor = torch.from_numpy(noise).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert viewer_html(tensor) == page
    assert viewer_html(tensor.double().requires_grad_()) == page


@pytest.mark.parametrize(("size", "kind", "error"), [(256, "png", 0.0), (257, "jpeg", 3.0)])
def test_small_faces_are_lossless_and_large_ones_jpeg(size: int, kind: str, error: float) -> None:
    faces = world_faces(size, 95.0)
    found = re.findall(rf'src="data:image/{kind};base64,([^"]+)" alt="(\w+) face"', viewer_html(faces))
    assert tuple(name for _, name in found) == FACES
    for (data, _), face in zip(found, faces, strict=True):
        stored = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=np.int16)
        assert np.abs(stored - face).mean() <= error


def test_write_viewer_creates_the_folder_and_returns_the_path(tmp_path: Path, noise: np.ndarray) -> None:
    path = write_viewer(str(tmp_path / "a" / "b" / "page.html"), noise, prompt="永遠 \ud800", title="Züri")
    assert path == tmp_path / "a" / "b" / "page.html"
    assert path.read_text(encoding="utf-8") == viewer_html(noise, prompt="永遠 \ufffd", title="Züri")


@pytest.mark.parametrize(
    ("faces", "words"),
    [
        (torch.zeros(1, 6, 3, 8, 8), r"\(1, 6, 3, 8, 8\)"),
        (torch.zeros(6, 3, 8, 9), r"\(6, 3, 8, 9\)"),
        (torch.full((6, 3, 8, 8), math.nan), "NaN"),
        (np.zeros((6, 3, 8, 8), np.uint8), r"\(6, 3, 8, 8\)"),
        (np.zeros((5, 8, 8, 3), np.uint8), r"\(5, 8, 8, 3\)"),
        ([Image.new("RGB", (8, 8))] * 5, "six square images"),
        ([Image.new("RGB", (8, 8))] * 5 + [Image.new("RGB", (9, 9))], r"\(9, 9\)"),
        ([], "six square images"),
    ],
)
def test_faces_of_a_wrong_shape_are_refused(faces, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        viewer_html(faces)


@pytest.mark.parametrize("fov", [89.9, 180.0, math.nan, -95.0])
def test_a_fov_that_leaves_gaps_is_refused(fov: float, noise: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"fov is {fov}"):
        viewer_html(noise, fov=fov)


def test_prompt_and_title_are_escaped_and_not_in_the_script(noise: np.ndarray) -> None:
    plain, page = viewer_html(noise), viewer_html(noise, prompt=HOSTILE, title=HOSTILE)
    assert page.count(html.escape(SHOWN)) == 3  # caption, title, and the canvas's label
    assert HOSTILE not in page
    script = plain[plain.index("<script>") :]
    assert page.endswith(script)
    assert page.count("<script>") == page.count("</script>") == 1


@pytest.mark.parametrize(("prompt", "visible"), [("", False), (" \n", False), ("a hall", True)])
def test_the_caption_is_visible_with_a_prompt(noise: np.ndarray, prompt: str, visible: bool) -> None:
    assert ('dir="auto" hidden>' not in viewer_html(noise, prompt=prompt)) is visible


# ---- views ----


def test_looking_along_an_axis_shows_that_face_pixel_for_pixel(open_page: Opener, noise: np.ndarray) -> None:
    page = open_page(noise, fov=90.0)
    for face, name in zip(noise, FACES, strict=True):
        assert np.abs(screenshot(page, *LOOKS[name], 90.0) - face).max() <= 2, name


def test_overlapping_faces_are_shown_pixel_for_pixel_outside_the_overlap(open_page: Opener, noise: np.ndarray) -> None:
    page = open_page(noise, fov=95.0)
    u = math.tan(math.radians(47.5)) * ((2 * np.arange(128) + 1) / 128 - 1)
    own = np.flatnonzero(np.abs(u) < 1 / math.tan(math.radians(47.5)))
    assert len(own) > 100
    for face, name in zip(noise, FACES, strict=True):
        difference = np.abs(screenshot(page, *LOOKS[name], 95.0) - face)
        assert difference[np.ix_(own, own)].max() <= 2, name


def test_views_are_correct_across_edges_and_corners(open_page: Opener) -> None:
    page = open_page(world_faces(128, 95.0), width=160, height=160)
    for yaw, pitch, fov in [(45, 35.26, 40), (-135, -35.26, 70), (180, 0, 110), (45, 90, 60), (200, -70, 25)]:
        error = np.abs(screenshot(page, yaw, pitch, fov) - world(directions(160, yaw, pitch, fov)))
        assert error.max() <= 2, (yaw, pitch, fov)


def test_faces_without_overlap_have_no_seam(open_page: Opener) -> None:
    page = open_page(world_faces(128, 90.0), width=160, height=160, fov=90.0)
    error = np.abs(screenshot(page, 45, 35.26, 40) - world(directions(160, 45, 35.26, 40)))
    assert error.max() <= 3


def test_blend_weights_fall_to_zero_at_the_borders(open_page: Opener) -> None:
    colors = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [250, 250, 20], [20, 250, 250], [250, 20, 250]])
    faces = np.broadcast_to(colors[:, None, None].astype(np.uint8), (6, 32, 32, 3))
    page = open_page(faces, width=200, height=200, fov=95.0)
    t = math.tan(math.radians(47.5))
    for yaw, pitch in [(45, 35.26), (-45, -35.26), (135, 0)]:
        rays = directions(200, yaw, pitch, 60)
        weights = []
        for name in FACES:
            right, up, axis = (rays @ rotation_matrix(*map(float, LOOKS[name])).double().numpy()).transpose(2, 0, 1)
            reach = np.maximum(np.abs(right), np.abs(up)) / np.where(axis > 0, axis, np.nan)
            weights.append(np.nan_to_num(np.clip((t - reach) / (t - 1), 0, 1)))
        blend = np.moveaxis(np.array(weights), 0, -1)
        expected = (blend / blend.sum(-1, keepdims=True)) @ colors
        assert (blend > 0.05).sum(-1).max() >= 2
        assert np.abs(screenshot(page, yaw, pitch, 60) - expected).max() <= 2


def test_views_of_a_photograph_equal_those_of_the_panorama(open_page: Opener) -> None:
    with Image.open(SAMPLES / "potsdamer_platz.jpg") as image:
        panorama = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].double() / 127.5 - 1
    size = panorama.shape[-1] * 3 // 8
    faces = equirect_to_cube(panorama, size, 95.0, mode="bicubic")[0]
    page = open_page(faces.float(), width=256, height=256)
    for yaw, pitch in [(0, 0), (45, 30), (-120, -40)]:
        truth = (equirect_to_perspective(panorama, 256, 80.0, float(yaw), float(pitch), mode="bicubic")[0] + 1) * 127.5
        error = screenshot(page, yaw, pitch, 80) - truth.clamp(0, 255).permute(1, 2, 0).numpy()
        assert 10 * math.log10(255**2 / (error**2).mean()) > 36


# ---- input ----


@pytest.fixture(scope="module")
def shared_page(browser: Browser, noise: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(browser, tmp_path_factory.mktemp("viewer")) as open_page:
        yield open_page(noise, width=400, height=300, prompt="a quiet hall", title="The hall")


@pytest.fixture
def page(shared_page: Page) -> Page:
    """A page of 400 × 300 pixels with the initial view: the front, 90° wide."""
    shared_page.evaluate("cubediffViewer.setView(0, 0, 90)")
    assert view(shared_page) == FRONT
    return shared_page


def test_dragging_moves_the_panorama_with_the_pointer(page: Page) -> None:
    page.mouse.move(250, 150)
    page.mouse.down()
    page.mouse.move(240, 150)
    now = view(page)
    # At 90 degrees across 400 pixels, a pixel at the middle is 1/200 of the distance to the screen.
    assert now["yaw"] == pytest.approx(math.degrees(10 / 200))
    assert now["pitch"] == 0
    page.mouse.move(240, 190)
    page.mouse.up()
    now = view(page)
    assert now["pitch"] == pytest.approx(math.degrees(40 / 200))
    page.mouse.move(100, 100)
    assert view(page) == now


def test_the_wheel_zooms(page: Page) -> None:
    page.mouse.move(200, 150)
    page.mouse.wheel(0, -200)
    page.wait_for_function("() => cubediffViewer.getView().fov < 80")
    page.evaluate("cubediffViewer.setView(0, 0, 110)")
    page.mouse.wheel(0, 1000)
    page.wait_for_function("() => cubediffViewer.getView().fov === 120")


@pytest.mark.parametrize(
    ("key", "name", "sign"),
    [
        ("ArrowRight", "yaw", 1),
        ("ArrowLeft", "yaw", -1),
        ("ArrowUp", "pitch", 1),
        ("ArrowDown", "pitch", -1),
        ("+", "fov", -1),
        ("-", "fov", 1),
    ],
)
def test_keys_turn_and_zoom(page: Page, key: str, name: str, sign: int) -> None:
    page.keyboard.press(key)
    change = {which: degrees - FRONT[which] for which, degrees in view(page).items()}
    assert change.pop(name) * sign > 3
    assert set(change.values()) == {0}


def test_the_view_stops_at_the_pole_and_r_resets_it(page: Page) -> None:
    page.evaluate("cubediffViewer.setView(170, 85, 40)")
    page.keyboard.press("Control+ArrowUp")  # the browser's own
    assert view(page) == {"yaw": 170, "pitch": 85, "fov": 40}
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert view(page)["pitch"] == 90
    page.keyboard.press("r")
    assert view(page) == FRONT


def test_buttons_have_names_and_work(page: Page) -> None:
    page.get_by_role("button", name="Zoom in").click()
    assert view(page)["fov"] == pytest.approx(72)
    page.get_by_role("button", name="Zoom out").click()
    assert view(page)["fov"] == pytest.approx(90)
    page.evaluate("cubediffViewer.setView(90, 20)")
    assert view(page)["yaw"] == 90
    heading = page.get_by_role("button", name="Reset the view")
    assert heading.inner_text().split() == ["90°", "right", "20°", "up"]
    heading.click()
    assert view(page) == FRONT
    canvas = page.get_by_role("application", name="The hall")
    assert canvas.get_attribute("aria-describedby") == "keys caption"
    assert page.title() == "The hall"


def test_full_screen_by_button_and_by_key(page: Page) -> None:
    assert page.evaluate("document.fullscreenElement") is None
    page.get_by_role("button", name="Full screen").click()
    page.wait_for_function("() => document.fullscreenElement !== null")
    page.keyboard.press("f")
    page.wait_for_function("() => document.fullscreenElement === null")


def test_keys_ease_unless_the_user_prefers_reduced_motion(open_page: Opener, noise: np.ndarray) -> None:
    """The test draws frames at simulated times, so that the speed of the machine does not matter."""
    shown = {}
    for motion in ("no-preference", "reduce"):
        page = open_page(noise, motion=motion, before=MANUAL_FRAMES)
        page.evaluate("drawFrames(100)")  # those of loading the page
        page.keyboard.press("ArrowRight")
        shown[motion] = page.evaluate("drawFrames(60).map(view => view.yaw)")
    assert shown["reduce"] == [7.5] * 60
    smooth = np.array(shown["no-preference"])
    assert smooth[0] == pytest.approx(7.5 * (1 - math.exp(-16 / 70)))  # a time constant of 70 ms, in the first 16 ms
    assert (np.diff(smooth) >= 0).all()
    assert (smooth < 7.5).sum() > 10
    assert smooth[-1] == 7.5


def test_one_finger_turns_and_two_fingers_zoom(open_page: Opener, noise: np.ndarray) -> None:
    page = open_page(noise, width=400, height=300, touch=True)
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[int, int]) -> None:
        touches = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    touch("touchStart", (200, 150))
    touch("touchMove", (260, 150))
    touch("touchMove", (260, 180))
    touch("touchEnd")
    now = view(page)
    assert now["yaw"] < -5
    assert now["pitch"] > 3
    assert now["fov"] == pytest.approx(90)
    touch("touchStart", (180, 150), (220, 150))
    touch("touchMove", (160, 150), (240, 150))
    touch("touchEnd")
    pinched = view(page)
    assert pinched["fov"] == pytest.approx(math.degrees(2 * math.atan(0.5)), abs=1)
    assert pinched["yaw"] == pytest.approx(now["yaw"], abs=1)


def test_the_url_contains_the_view(open_page: Opener, noise: np.ndarray) -> None:
    page = open_page(noise, hash="#yaw=-90&pitch=12.5&fov=72")
    assert view(page) == {"yaw": -90, "pitch": 12.5, "fov": 72}
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**#yaw=-96&pitch=12.5&fov=72")
    page.evaluate("location.hash = 'yaw=400&pitch=-200&fov=nonsense'")
    page.wait_for_function("() => cubediffViewer.getView().pitch === -90")
    assert view(page) == {"yaw": 40, "pitch": -90, "fov": 72}


# ---- failures ----


def test_a_hostile_prompt_is_shown_as_text(open_page: Opener, noise: np.ndarray) -> None:
    page = open_page(noise, prompt=HOSTILE + "\x00\x1b\x7f\x85\r\nnext line", title=HOSTILE)
    assert page.locator("#caption").text_content() == SHOWN + "␀␛␡\ufffd\nnext line"
    assert page.locator("#caption").is_visible()
    assert page.locator("#caption *").count() == 0
    assert page.evaluate("typeof window.hacked") == "undefined"


def test_without_webgl2_the_page_shows_a_message_and_the_faces(open_page: Opener, noise: np.ndarray) -> None:
    page = open_page(
        noise,
        width=900,
        height=700,
        before="HTMLCanvasElement.prototype.getContext = () => null",
        ready=False,
    )
    assert "needs WebGL 2" in page.get_by_role("alert").inner_text()
    for name in FACES:
        assert page.get_by_role("img", name=f"{name} face").is_visible()


def test_a_lost_context_shows_a_message_until_it_is_restored(open_page: Opener, noise: np.ndarray) -> None:
    page = open_page(noise, fov=90.0)
    page.evaluate(
        "window.context = document.querySelector('canvas').getContext('webgl2');"
        "window.loss = context.getExtension('WEBGL_lose_context'); loss.loseContext()"
    )
    page.wait_for_function("() => !document.getElementById('message').hidden")
    assert "context was lost" in page.get_by_role("alert").inner_text()
    page.evaluate("loss.restoreContext()")
    page.wait_for_function("() => document.getElementById('message').hidden")
    assert np.abs(screenshot(page, 90, 0, 90) - noise[1]).max() <= 2
