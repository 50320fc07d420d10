"""Names, order and field of view of the six faces; loads no library, unlike `conventions`."""

from typing import Final

FACE_FOV: Final = 95.0  # degrees; 5° more than a quarter turn, so that neighbouring faces overlap (section 3)

FACES: Final = ("front", "right", "back", "left", "up", "down")
