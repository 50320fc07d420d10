"""The viewer: a self-contained HTML page, usable offline, that shows a panorama from its six faces.

The faces keep their overlap (95°, CubeDiff, section 4.3); the page blends them when it draws a view.
"""

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cubediff.geometry.conventions import FACE_FOV, FACES
from cubediff.pages.html import escape, fill_template, read_template

# (6, S, S, 3) or (6, 3, S, S); the shape is checked with a message for users.
Faces: TypeAlias = Sequence[Image.Image] | UInt8[np.ndarray, "..."] | Float[Tensor, "..."]
PNG_LIMIT = 256  # pixels: larger faces are stored as JPEG


def viewer_html(
    faces: Faces,
    *,
    fov: float = FACE_FOV,
    prompt: str = "",
    title: str = "cubediff panorama",
) -> str:
    """Returns a self-contained HTML page that shows a panorama.

    Faces up to 256 pixels wide are embedded as PNG, larger ones as JPEG of quality 95.

    Args:
        faces: In FACES order: six square PIL images, uint8 RGB (6, S, S, 3), or a float tensor (6, 3, S, S) in [−1, 1],
            which is clamped.
        fov: Field of view of a face, in degrees: at least 90, below 180.
        prompt: Caption of the page; control characters are shown as symbols.
        title: Title of the page.

    Raises:
        ValueError: If the faces or `fov` are invalid.

    Example:
        >>> page = viewer_html(torch.zeros(6, 3, 8, 8), prompt="a grey room")
        >>> page.startswith("<!doctype html>"), "a grey room" in page
        (True, True)
    """
    if not (math.isfinite(fov) and 90.0 <= fov < 180.0):
        raise ValueError(f"fov is {fov}: pass the field of view of a face in degrees, at least 90 and below 180")
    figures = "\n".join(
        f'<figure><img src="{_data_uri(face)}" alt="{name} face"><figcaption>{name}</figcaption></figure>'
        for face, name in zip(_as_images(faces), FACES, strict=True)
    )
    template = read_template("cubediff.pages", "viewer.html")
    script = template[template.index("<script>") + len("<script>") : template.index("</script>")]
    values = {
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "title": escape(title),
        "fov": repr(float(fov)),
        "faces": figures,
        "prompt": escape(prompt),
        "caption_hidden": "" if prompt.strip() else " hidden",
    }
    return fill_template(template, values)


def write_viewer(
    path: str | Path,
    faces: Faces,
    *,
    fov: float = FACE_FOV,
    prompt: str = "",
    title: str = "cubediff panorama",
) -> Path:
    """Writes the page of `viewer_html` to a file and creates its folder.

    Returns:
        `path`.

    Raises:
        ValueError: If the faces or `fov` are invalid.
        OSError: If the file cannot be written.
    """
    page = viewer_html(faces, fov=fov, prompt=prompt, title=title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page.encode("utf-8"))
    return path


def _as_images(faces: Faces) -> list[Image.Image]:
    if isinstance(faces, Tensor):
        shape = tuple(faces.shape)
        if len(shape) != 4 or shape[:2] != (6, 3) or shape[2] != shape[3]:
            raise ValueError(f"faces have shape {shape}: pass those of one panorama, (6, 3, S, S)")
        if not faces.isfinite().all():
            raise ValueError("faces contain NaN or infinity: check the VAE's output")
        levels = (faces.detach().float().clamp(-1, 1) + 1) * 127.5
        faces = levels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    if isinstance(faces, np.ndarray):
        if faces.ndim != 4 or faces.shape[0] != 6 or faces.shape[3] != 3 or faces.shape[1] != faces.shape[2]:
            raise ValueError(f"faces have shape {faces.shape}: pass those of one panorama, (6, S, S, 3)")
        return [Image.fromarray(face) for face in faces]
    sizes = [face.size for face in faces]
    if len(sizes) != 6 or len(set(sizes)) != 1 or sizes[0][0] != sizes[0][1]:
        raise ValueError(f"faces have the sizes {sizes}: pass six square images of one size")
    return [Image.fromarray(np.asarray(face.convert("RGB"))) for face in faces]  # without ICC profile and EXIF


def _data_uri(face: Image.Image) -> str:
    data = io.BytesIO()
    if face.width <= PNG_LIMIT:
        face.save(data, "PNG")
        kind = "png"
    else:
        face.save(data, "JPEG", quality=95, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
