"""Image files: reading, HDR tone mapping, writing."""
