"""View protocols: their directions, and what their views show."""

import pytest
import torch

from cubediff.evaluation.views import PROTOCOLS, View, render_views
from cubediff.geometry import equirect_to_cube
from cubediff.geometry.conventions import rotation_matrix, sphere_directions


@pytest.mark.parametrize(
    ("name", "count", "size"),
    [("cubediff_paper", 10, 512), ("azimuth8", 8, 512), ("panfusion", 20, 299), ("faces", 6, 512)],
)
def test_a_protocol_has_its_number_of_views_of_90_degrees(name: str, count: int, size: int) -> None:
    protocol = PROTOCOLS[name]
    views = protocol.views(3)
    assert protocol.size == size
    assert len(views) == len(set(views)) == count
    assert {view.fov for view in views} == {90.0}
    assert all(-180 <= view.yaw < 360 and -90 <= view.pitch <= 90 for view in views)
    assert views == protocol.views(3)


def test_only_random_views_differ_from_panorama_to_panorama() -> None:
    """As PanFusion draws them: for each panorama anew, and for the real and the generated one alike."""
    for protocol in PROTOCOLS.values():
        assert (protocol.views(0) == protocol.views(1)) == (protocol.name not in ("cubediff_paper", "panfusion"))
    assert PROTOCOLS["panfusion"].views(0, seed=0) != PROTOCOLS["panfusion"].views(0, seed=1)


def test_elevations_are_within_45_degrees_or_uniform_on_the_sphere() -> None:
    paper = [view.pitch for index in range(400) for view in PROTOCOLS["cubediff_paper"].views(index)]
    assert -45 <= min(paper) < -40
    assert 40 < max(paper) <= 45
    sphere = torch.tensor([view.pitch for seed in range(200) for view in PROTOCOLS["panfusion"].views(0, seed)])
    assert sphere.deg2rad().sin().square().mean().item() == pytest.approx(1 / 3, rel=0.05)  # 1/2 if elevations were


def test_a_view_shows_its_direction() -> None:
    """The panorama's colours are its directions."""
    panorama = sphere_directions(256).movedim(-1, 0).float()
    views = [View(30.0, -20.0, 90.0), View(200.0, 70.0, 60.0)]
    rendered = render_views(panorama, views, 65)
    assert rendered.shape == (2, 3, 65, 65)
    for view, image in zip(views, rendered, strict=True):
        forward = rotation_matrix(view.yaw, view.pitch) @ torch.tensor([0.0, 0.0, 1.0])
        torch.testing.assert_close(image[:, 32, 32], forward, rtol=0, atol=2e-2)


def test_views_of_the_faces_are_the_faces() -> None:
    panorama = sphere_directions(256).movedim(-1, 0).float()
    faces = equirect_to_cube(panorama[None], 64, 90.0)[0]
    torch.testing.assert_close(render_views(panorama, PROTOCOLS["faces"].views(0), 64), faces, rtol=0, atol=1e-2)
