"""The sizes of panoramas, and the JPEG quality of encoded ones; loads no library."""

MIN_WIDTH = 32  # pixels; smaller images are icons
MAX_WIDTH = 16384  # pixels; wider panoramas need a setting
MAX_WIDTH_LIMIT = 32768  # pixels; the largest value of that setting, see `jpeg.MAX_PIXELS`
QUALITY = 95  # of JPEG
