"""Six faces as image files: conventions of engines, layouts in one image, and the record that describes them."""
