"""Images that are written: PNG in the bit depth of its levels, with ICC profile and XMP metadata."""

import io

import cv2
import numpy as np
import PIL.Image
import pytest
from support.image_files import DISPLAY_P3, gpano, icc

from cubediff.images.writing import encode_png


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("metadata", [{}, {"profile": icc(DISPLAY_P3), "xmp": gpano({}).decode() + "°"}])
def test_a_png_holds_levels_profile_and_xmp(dtype: type, metadata: dict) -> None:
    levels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (20, 41, 3), dtype, endpoint=True)
    data = encode_png(levels, **metadata)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded[..., ::-1], levels)
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.load()  # Pillow verifies the checksums
        assert image.info.get("icc_profile") == metadata.get("profile")
        xmp = image.info.get("xmp", b"")
    assert xmp == metadata.get("xmp", "").encode()
