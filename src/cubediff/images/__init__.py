"""The one reader and writer of image files: formats, orientation, colour profiles, alpha, size limits, HDR."""
