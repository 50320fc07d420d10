"""The default field of view is defined once."""

import ast
from pathlib import Path

from omegaconf import OmegaConf

from cubediff.geometry import FACE_FOV

ROOT = Path(__file__).parents[2]


def test_training_config_has_the_default_field_of_view() -> None:
    assert OmegaConf.load(ROOT / "conf/train.yaml").fov == FACE_FOV


def test_no_default_argument_repeats_the_field_of_view() -> None:
    repeated = []
    for path in (ROOT / "src/cubediff").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                defaults = [ast.unparse(value) for value in (*node.args.defaults, *node.args.kw_defaults) if value]
                if repr(FACE_FOV) in defaults:
                    repeated.append(f"{path.name}: {node.name}")
    assert repeated == []
