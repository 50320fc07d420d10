"""The conditions that a panorama may be denoised from. Loads no torch, so that a command's --help stays fast."""

# By index: 1 is added when the image is dropped, 2 when the text is.
CONDITIONS = ("text_photo", "text", "photo", "none")
