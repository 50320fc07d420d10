"""A page to look around in: the six faces of a panorama as one HTML file that works offline.

The faces keep their overlap, 95 degrees in CubeDiff (section 4.3), and are blended as they are drawn.
"""

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cubediff.geometry.conventions import FACE_FOV, FACES
from cubediff.pages.html import escape, fill_template, read_template

PNG_LIMIT = 256  # pixels: up to here a face is stored without loss


def viewer_html(
    faces: Sequence[Image.Image] | UInt8[np.ndarray, "..."] | Float[Tensor, "..."],
    *,
    fov: float = FACE_FOV,
    prompt: str = "",
    title: str = "cubediff panorama",
) -> str:
    """The text of a self-contained page that shows `faces` as a panorama.

    `faces`: six square PIL images, uint8 RGB (6, S, S, 3), or a float tensor (6, 3, S, S) in [-1, 1]
    (clamped), in the order of `cubediff.geometry.conventions.FACES`. `fov`: degrees that a face spans, 90 or more.
    Up to 256 pixels a face is embedded as PNG, above as JPEG of quality 95. `prompt` is shown as text,
    its control characters as symbols. Raises ValueError for faces or a fov that cannot be shown.
    """
    if not (math.isfinite(fov) and 90.0 <= fov < 180.0):
        raise ValueError(f"fov is {fov}: pass the degrees that a face spans, at least 90 and below 180")
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
    faces: Sequence[Image.Image] | UInt8[np.ndarray, "..."] | Float[Tensor, "..."],
    *,
    fov: float = FACE_FOV,
    prompt: str = "",
    title: str = "cubediff panorama",
) -> Path:
    """Write `viewer_html(faces, ...)` to `path`, making its folder, and return the path."""
    page = viewer_html(faces, fov=fov, prompt=prompt, title=title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page.encode("utf-8"))
    return path


def _as_images(faces: Sequence[Image.Image] | np.ndarray | Tensor) -> list[Image.Image]:
    if isinstance(faces, Tensor):
        shape = tuple(faces.shape)
        if len(shape) != 4 or shape[:2] != (6, 3) or shape[2] != shape[3]:
            raise ValueError(f"faces has shape {shape}: pass one panorama's faces, (6, 3, S, S)")
        if not faces.isfinite().all():
            raise ValueError("faces holds NaN or infinity: the panorama was not decoded properly")
        levels = (faces.detach().float().clamp(-1, 1) + 1) * 127.5
        faces = levels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    if isinstance(faces, np.ndarray):
        if faces.ndim != 4 or faces.shape[0] != 6 or faces.shape[3] != 3 or faces.shape[1] != faces.shape[2]:
            raise ValueError(f"faces has shape {faces.shape}: pass one panorama's faces, (6, S, S, 3)")
        return [Image.fromarray(face) for face in faces]
    sizes = [face.size for face in faces]
    if len(sizes) != 6 or len(set(sizes)) != 1 or sizes[0][0] != sizes[0][1]:
        raise ValueError(f"faces has the sizes {sizes}: pass six square images of one size")
    return [Image.fromarray(np.asarray(face.convert("RGB"))) for face in faces]  # without profiles and tags


def _data_uri(face: Image.Image) -> str:
    data = io.BytesIO()
    if face.width <= PNG_LIMIT:
        face.save(data, "PNG")
        kind = "png"
    else:
        face.save(data, "JPEG", quality=95, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
