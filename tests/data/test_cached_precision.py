"""Latents in the files of `cubediff cache`, of real panoramas, against an encoding in float64."""

import copy
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.kernels import KernelDtypes
from support.runs import composed
from torch import Tensor

from cubediff.data import build_shards
from cubediff.models.encoders import FrozenEncoders
from cubediff.runs.cache_latents import cache

SAMPLES = Path(__file__).parents[2] / "data/samples"
COUNT = 10


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of ten panoramas."""
    folder = tmp_path_factory.mktemp("source")
    lines = (SAMPLES / "captions.jsonl").read_text(encoding="utf-8").splitlines()[:COUNT]
    (folder / "panoramas").mkdir()
    for line in lines:
        shutil.copy(SAMPLES / json.loads(line)["file"], folder / "panoramas")
    (folder / "panoramas/captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    build_shards(folder / "panoramas", folder / "shards", val_fraction=0.0)
    return folder / "shards"


def cached(source: Path, output: Path, *words: str) -> tuple[list[Tensor], KernelDtypes]:
    """The cached latents of each panorama, and the kernels that computed them."""
    model = ("model=cubediff_tiny", "trainer=cpu", "face_size=64", "data.num_workers=0")
    options = (f"data.path={source}", f"cache.output={output}", "cache.turns=1", *words)
    with KernelDtypes() as kernels:
        cache(composed(*model, *options, name="cache"))
    found = []
    for tar in sorted(output.glob("*.tar")):
        with tarfile.open(tar) as opened:
            members = [opened.extractfile(name) for name in opened.getnames() if name.endswith(".safetensors")]
            found += [safetensors.torch.load(member.read())["latents"] for member in members if member]
    assert len(found) == COUNT
    return found, kernels


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Receives the latents in float64 of each panorama that is encoded."""
    encode, exact = FrozenEncoders.encode, list[Tensor]()

    @torch.no_grad()
    def recorded(encoders: FrozenEncoders, faces: Tensor) -> Tensor:
        assert faces.dtype is torch.float32
        vae = copy.deepcopy(encoders.vae).double()
        with torch.utils._python_dispatch._disable_current_modes():  # which record the kernels
            moments = torch.stack([vae.encode(cube.double()).latent_dist.mean for cube in faces])
        exact.append(moments * vae.config.scaling_factor)
        return encode(encoders, faces)

    monkeypatch.setattr(FrozenEncoders, "encode", recorded)
    return exact


@pytest.mark.parametrize(
    ("precision", "dtype", "near"),
    [
        ("32-true", "float32", 1e-5),
        ("bf16-mixed", "float32", 1e-5),
        ("bf16-true", "float32", 1e-5),
        ("bf16-mixed", "float16", 5e-4),
    ],
)
def test_cached_latents_are_encoded_in_float32(
    precision: str, dtype: str, near: float, source: Path, tmp_path: Path, expected: list[Tensor]
) -> None:
    """In any precision of the Trainer; bfloat16 would differ by 2e-3."""
    latents, kernels = cached(source, tmp_path / "out", f"trainer.precision={precision}", f"cache.dtype={dtype}")
    assert kernels.inputs["conv2d"] == kernels.inputs["linear"] == {torch.float32}
    assert {str(each.dtype) for each in latents} == {f"torch.{dtype}"}
    for one, right in zip(latents, expected, strict=True):
        assert (one - right).norm() < near * right.norm()
        assert (right.bfloat16() - right).norm() > 1e-3 * right.norm()
