"""A config runs what it names, except what no config needs: `_target_: os.system` and its like are refused."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cubediff.configs import build


@pytest.mark.parametrize(
    "target", ["os.system", "posix.system", "subprocess.run", "subprocess.check_output", "os.popen"]
)
@pytest.mark.parametrize("inside", [False, True], ids=["target", "inside another"])
def test_a_target_that_runs_a_command_is_refused(target: str, inside: bool, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    node = {"_target_": target, "_args_": [f"touch {canary}"]}
    config = OmegaConf.create({"_target_": "builtins.dict", "value": node} if inside else node)
    with pytest.raises(ValueError, match=f"'{target}'|'os.system'"):
        build(config)
    assert not canary.exists()


@pytest.mark.parametrize("target", ["builtins.eval", "builtins.exec"])
def test_a_target_that_runs_python_is_refused(target: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    config = OmegaConf.create({"_target_": target, "_args_": [f"open({str(canary)!r}, 'w').close()"]})
    with pytest.raises(ValueError, match=target):
        build(config)
    assert not canary.exists()
