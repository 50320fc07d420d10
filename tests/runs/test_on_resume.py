"""The table of config keys: what changing each of them means for a run that resumes."""

import inspect
from itertools import product
from pathlib import Path

import lightning as L
import pytest
from support.runs import composed

from cubediff.configs import CONFIG_DIR, to_plain
from cubediff.runs.on_resume import ON_RESUME, OnResume, find_rule, flatten


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in Path(CONFIG_DIR, group).glob("*.yaml") if file.stem != "base")


GROUPS = ("data", "trainer", "callbacks", "logger", "objective", "optimizer", "model", "variant", "experiment")


@pytest.mark.parametrize("words", [(f"{group}={choice}",) for group in GROUPS for choice in choices(group)])
def test_every_key_of_every_composed_config_is_in_the_table(words: tuple[str, ...], tmp_path: Path) -> None:
    config = to_plain(composed("data.path=x", *words, run_dir=tmp_path))
    assert [key for key, _ in flatten(config) if find_rule(key) is None and key != "callbacks"] == []


def test_every_key_of_every_experiment_with_every_data_module_is_in_the_table(tmp_path: Path) -> None:
    for experiment, data in product(choices("experiment"), choices("data")):
        try:
            config = to_plain(composed("data.path=x", f"experiment={experiment}", f"data={data}", run_dir=tmp_path))
        except Exception as error:
            assert "Could not override" in str(error)  # noqa: PT017 - the experiment sets a key that the data lacks
            continue
        assert [key for key, _ in flatten(config) if find_rule(key) is None] == []


def test_every_argument_of_the_trainer_is_in_the_table() -> None:
    arguments = [name for name in inspect.signature(L.Trainer.__init__).parameters if name != "self"]
    assert [name for name in arguments if f"trainer.{name}" not in ON_RESUME] == []


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("model.optimizer.lr", OnResume.MUST_MATCH),
        ("model.pipeline.path", OnResume.IRRELEVANT),
        ("model.pipeline.scheduler.prediction_type", OnResume.MUST_MATCH),
        ("data.photos.fov", OnResume.ANNOUNCED),
        ("data.cache_gb", OnResume.IRRELEVANT),
        ("trainer.gradient_clip_val", OnResume.ANNOUNCED),
        ("callbacks.ema.decay", OnResume.MUST_MATCH),
        ("callbacks.of_an_extension.size", None),
        ("named", None),
    ],
)
def test_the_longest_key_of_the_table_counts(key: str, rule: OnResume | None) -> None:
    assert find_rule(key) is rule
