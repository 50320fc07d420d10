"""Reading and writing of image files: formats, orientation, colour profiles, alpha, size limits, HDR."""
