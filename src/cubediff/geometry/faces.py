"""Names, orders and field of view of the six faces; loads no library, unlike `conventions`."""

from typing import Final

FACE_FOV: Final = 95.0  # degrees; 5° more than a quarter turn, so that neighbouring faces overlap (section 3)

FACES: Final = ("front", "right", "back", "left", "up", "down")

# All orders orient their faces as FACES does, so an order is a permutation and nothing is flipped: py360convert since
# 1.0, the sc/tc/ma table of OpenGL read with this module's axes, and the public SD 1.5 checkpoints.
FACE_ORDERS: Final = {
    "cubediff": FACES,
    "py360convert": ("front", "right", "back", "left", "up", "down"),
    "opengl": ("right", "left", "up", "down", "front", "back"),
    "opencubediff": ("front", "back", "left", "right", "up", "down"),
}
