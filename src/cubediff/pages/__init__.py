"""HTML output: the panorama viewer, charts, templates and escaping."""
