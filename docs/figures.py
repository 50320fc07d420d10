"""Makes the pictures of the documentation: python docs/figures.py [strip] [editing] [cube] [overlap] [viewer]

strip: a real panorama, and two that the small demo model generates from its caption and from its front face.
editing: two real panoramas, one without its nadir and one without a strip, and the demo model's repainting of them.
cube: the axes, the face order and the unfolded faces, drawn with the functions of cubediff.geometry.
overlap: two neighbouring faces, and how many faces see each direction of a panorama.
viewer: a screenshot of the viewer page in headless Chromium, which must be on the PATH.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cubediff import CubeDiffPipeline, Panorama
from cubediff.geometry import FACE_FOV, FACES, equirect_to_cube, face_directions
from cubediff.geometry.photos import Photo
from cubediff.pages.viewer import write_viewer

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs/images"
MODEL = ROOT / "experiments/cubediff_tiny/model"
SAMPLES = ROOT / "data/samples"
SCENE = "pmndrs_sunset.jpg"  # a training scene of the demo model, as all of data/samples
UNFOLDED = "hotel_room.jpg"
VIEWED = "ninomaru_teien.jpg"
EYE = np.array([1.7, 1.15, -1.9])  # where the drawing of the cube is seen from: right, up and behind
AXES = (("right", (2.2, 0, 0), "x right"), ("up", (0, 1.8, 0), "y up"), ("front", (0, 0, 2.2), "z forward"))
HIDDEN = ("front", "left", "down")  # by the other three faces
INK = (40, 44, 52)
COLOURS = {"right": (214, 76, 76), "up": (72, 160, 88), "front": (66, 112, 214)}  # of the axes x, y and z


def panorama(name: str) -> Tensor:
    """A sample panorama, (3, H, 2H) in [−1, 1]."""
    pixels = np.array(Image.open(SAMPLES / name).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def image(tensor: Tensor) -> Image.Image:
    """A (3, H, W) tensor in [−1, 1] as a picture."""
    pixels = ((tensor.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def strip() -> None:
    """Writes strip.jpg: three panoramas side by side, with labels."""
    lines = (SAMPLES / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    caption = next(line["caption"] for line in map(json.loads, lines) if line["file"] == SCENE)
    real = panorama(SCENE)
    front = image(equirect_to_cube(real[None], 256, 95.0)[0, 0])
    pipeline = CubeDiffPipeline.from_pretrained(MODEL)
    from_text = pipeline(caption, generator=torch.Generator().manual_seed(1)).panoramas[0]
    photo = Photo(front, fov=95.0)
    from_photo = pipeline(caption, image=photo, generator=torch.Generator().manual_seed(1)).panoramas[0]
    columns = {"real": image(real), "from its caption": from_text, "from its front face and caption": from_photo}
    sheet = Image.new("RGB", (3 * 512 + 2 * 12, 256 + 52), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (label, picture) in enumerate(columns.items()):
        left = column * (512 + 12)
        sheet.paste(picture.resize((512, 256), Image.Resampling.LANCZOS), (left, 0))
        draw.text((left + 256, 282), label, fill=INK, font=font(30), anchor="mm")
    sheet.save(IMAGES / "strip.jpg", quality=90)


def editing() -> None:
    """Writes editing.jpg: two masked panoramas at the left, the edited ones at the right."""
    pipeline = CubeDiffPipeline.from_pretrained(MODEL)
    nadir, strip = np.zeros((256, 512), bool), np.zeros((256, 512), bool)
    nadir[206:], strip[:, 313:370] = True, True
    sheet = Image.new("RGB", (2 * 512 + 12, 2 * 256 + 12), "white")
    for row, (name, prompt, mask) in enumerate(
        [("courtyard.jpg", "a courtyard", nadir), ("dancing_hall.jpg", "a dance hall", strip)]
    ):
        picture = image(panorama(name)).resize((512, 256), Image.Resampling.LANCZOS)
        generator = torch.Generator().manual_seed(0)
        edited = pipeline(prompt, image=Panorama(picture, mask), num_inference_steps=20, generator=generator)
        masked = np.where(mask[..., None], 255, np.asarray(picture)).astype(np.uint8)
        for column, half in enumerate((Image.fromarray(masked), edited.panoramas[0])):
            sheet.paste(half, (column * (512 + 12), row * (256 + 12)))
    sheet.save(IMAGES / "editing.jpg", quality=90)


def overlap() -> None:
    """Writes overlap.jpg: two neighbouring faces with the strip that both show, and the number of faces that see each
    direction of the panorama."""
    size, gap = 256, 12
    shown, reach = panorama(UNFOLDED), np.tan(np.radians(FACE_FOV / 2))
    faces = equirect_to_cube(shown[None], size, FACE_FOV)[0]
    sheet = Image.new("RGB", (2 * size + gap, 2 * size + 2 * gap), "white")
    draw = ImageDraw.Draw(sheet)
    border = size / 2 * (1 + np.tan(np.radians(90 - FACE_FOV / 2)) / reach)  # of the other face, in pixels
    for column, (name, line) in enumerate((("front", border), ("right", size - border))):
        left = column * (size + gap)
        sheet.paste(image(faces[FACES.index(name)]), (left, 0))
        draw.line([(left + line, 0), (left + line, size)], fill=COLOURS["right"], width=2)
        draw.text(
            (left + size / 2, 20), name, fill="white", font=font(20), anchor="mm", stroke_width=2, stroke_fill=INK
        )
    rows, columns = shown.shape[1:]
    yaw = ((torch.arange(columns) + 0.5) / columns - 0.5) * 2 * torch.pi
    pitch = (0.5 - (torch.arange(rows) + 0.5) / rows)[:, None] * torch.pi
    flat = pitch.cos()
    directions = torch.stack([flat * yaw.sin(), pitch.sin().expand(rows, columns), flat * yaw.cos()]).abs()
    nearest = directions.sort(0).values  # the largest component is that of the face whose axis is nearest
    seen_by = 1 + sum((nearest[2] <= reach * nearest[i]).float() for i in (0, 1))
    brightness = (seen_by + 1) / 4
    sphere = image((shown + 1) * brightness - 1).resize((2 * size + gap, size + gap), Image.Resampling.LANCZOS)
    sheet.paste(sphere, (0, size + gap))
    sheet.save(IMAGES / "overlap.jpg", quality=88)


def project(points: np.ndarray) -> np.ndarray:
    """World points (…, 3) on the drawing plane (…, 2), seen from behind, above and to the right of the origin."""
    forward = -EYE / np.linalg.norm(EYE)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    up = np.cross(forward, right)
    return np.stack([points @ right, -(points @ up)], -1)


def arrow(draw: ImageDraw.ImageDraw, start: np.ndarray, end: np.ndarray, colour: tuple[int, ...], width: int) -> None:
    """Draws a straight arrow with a filled head."""
    along = (end - start) / np.linalg.norm(end - start)
    across = np.array([-along[1], along[0]])
    base = end - 5 * width * along
    draw.line([*map(tuple, (start, base))], fill=colour, width=width)
    draw.polygon([*map(tuple, (end, base + 2.2 * width * across, base - 2.2 * width * across))], fill=colour)


def cube() -> None:
    """Writes cube.jpg: the cube with its axes at the left, the faces of a real panorama unfolded at the right."""
    scale = 2  # drawn larger and reduced, for smooth edges
    width, height = 1200 * scale, 460 * scale
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet, "RGBA")
    centre = np.array([240.0, 240.0]) * scale
    unit = 112 * scale
    directions = face_directions(2, 90.0).numpy()  # (6, 2, 2, 3): pixel centres, at ±½ of each face
    corners = {}
    for name, rays in zip(FACES, directions, strict=True):
        middle = rays.mean((0, 1))
        middle /= np.abs(middle).max()
        towards = rays / (rays @ middle)[..., None]
        corners[name] = middle + 2 * (towards - middle)
    for name in sorted(FACES, key=lambda name: float(corners[name].mean((0, 1)) @ EYE)):
        quad = corners[name].reshape(4, 3)[[0, 1, 3, 2]]
        points = [tuple(point) for point in project(quad) * unit + centre]
        tint = COLOURS.get(name, (150, 156, 166))
        draw.polygon(points, fill=(*tint, 38))
        draw.line([*points, points[0]], fill=(178, 184, 194) if name in HIDDEN else INK, width=2 * scale)
    origin = centre + project(np.zeros(3)) * unit
    for name, axis, label in AXES:
        end = centre + project(np.array(axis)) * unit
        arrow(draw, origin, end, COLOURS[name], 3 * scale)
        beside = np.array([10.0, 0.0] if name != "up" else [-24.0, -14.0]) * scale
        draw.text(tuple(end + beside), label, fill=COLOURS[name], font=font(22 * scale), anchor="lm")
    draw.ellipse([*(origin - 5 * scale), *(origin + 5 * scale)], fill=INK)
    for index, name in enumerate(FACES):
        offset = {"front": (-34, -44), "right": (0, 56), "up": (-52, 0), "back": (-30, 40)}.get(name, (0, 0))
        x, y = centre + project(corners[name].mean((0, 1))) * unit + np.array(offset) * scale
        colour = (120, 126, 136) if name in HIDDEN else INK
        draw.text((x, y), f"{index} {name}", fill=colour, font=font(17 * scale), anchor="mm")

    size = 138 * scale
    faces = equirect_to_cube(panorama(UNFOLDED)[None], size, 90.0)[0]
    places = {"front": (1, 1), "right": (2, 1), "back": (3, 1), "left": (0, 1), "up": (1, 0), "down": (1, 2)}
    for index, name in enumerate(FACES):
        column, row = places[name]
        left, top = 560 * scale + column * (size + 6 * scale), 16 * scale + row * (size + 6 * scale)
        sheet.paste(image(faces[index]), (left, top))
        label = f"{index} {name}"
        box = draw.textbbox((left + 8 * scale, top + 8 * scale), label, font=font(18 * scale))
        draw.rectangle((box[0] - 5 * scale, box[1] - 4 * scale, box[2] + 5 * scale, box[3] + 4 * scale),
                       fill=(255, 255, 255, 225))  # fmt: skip
        draw.text((left + 8 * scale, top + 8 * scale), label, fill=INK, font=font(18 * scale))
    smooth = sheet.resize((width // scale, height // scale), Image.Resampling.LANCZOS)
    smooth.save(IMAGES / "cube.jpg", quality=92, subsampling=0)


def viewer() -> None:
    """Writes viewer.jpg: the viewer page with a real panorama."""
    from playwright.sync_api import sync_playwright

    chromium = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    faces = equirect_to_cube(panorama(VIEWED)[None], 512, 95.0)[0]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = write_viewer(Path(folder) / "viewer.html", faces, title=VIEWED)
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 960, "height": 540})
        page.goto(page_file.as_uri())
        page.keyboard.press("-")
        page.wait_for_timeout(3000)
        page.screenshot(path=IMAGES / "viewer.jpg", type="jpeg", quality=85)
        browser.close()


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or ("strip", "editing", "cube", "overlap", "viewer"):
        {"strip": strip, "editing": editing, "cube": cube, "overlap": overlap, "viewer": viewer}[name]()
