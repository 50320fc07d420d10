"""The files of a generated panorama."""

from pathlib import Path

from PIL import Image

from cubediff.generation.outputs import write_generation


def test_partial_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in (".generation.json.0a1b.part", ".viewer.html.2c3d.part"):
        (folder / name).write_text("{")
    faces = [Image.new("RGB", (8, 8))] * 6
    write_generation(folder, Image.new("RGB", (32, 16)), faces, {}, fov=90.0, prompt="a hall", save_faces=None)
    assert {path.name for path in folder.iterdir()} == {"generation.json", "panorama.jpg", "viewer.html"}
