"""Self-contained HTML pages: the panorama viewer, charts, escaping."""
