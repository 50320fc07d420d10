"""Evaluates a model or a set of panoramas as the config `evaluate` describes it."""

import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from os import sep
from os.path import relpath
from pathlib import Path
from urllib.parse import quote

import torch
import torchmetrics
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

import cubediff
from cubediff.configs import CONFIG_DIR
from cubediff.evaluation.features import default_cache
from cubediff.evaluation.opened_sets import open_set
from cubediff.evaluation.report import Shown, write_report
from cubediff.evaluation.results import METRICS, Results, Stored, read_results, write_results
from cubediff.evaluation.sets import PanoramaSet, Sized, in_order_of, to_levels
from cubediff.evaluation.views import PROTOCOLS, ViewProtocol
from cubediff.generation.devices import usable_device
from cubediff.images.writing import encode_jpeg
from cubediff.runs.evaluation.generating import generate_samples, model_record, settings_used
from cubediff.runs.evaluation.measure import Evaluation, Settings
from cubediff.runs.evaluation.settings import check_config, load_extractors, wanted_metrics
from cubediff.runs.lock import lock_run
from cubediff.utils.ranks import is_first_rank
from cubediff.utils.text import printable, redact, redact_values

REPORT = "report.html"
_THUMBNAIL = 240  # rows


def evaluated(values: Mapping[str, object], output: Path) -> Stored:
    """Evaluates with these values of the config unless `output` has the results already; returns them.

    Raises:
        ValueError, OSError, FloatingPointError: As `evaluate`.
    """
    if not (output / METRICS).is_file():
        with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
            config = compose("evaluate")
        config.merge_with({**values, "output": str(output)})
        evaluate(config)
    return read_results(output)


def evaluate(config: DictConfig) -> Results | None:
    """Generates the samples that are missing, measures all of them, and writes the results.

    Args:
        config: The config `evaluate`.

    Returns:
        The results; None in processes of torchrun other than the first.

    Raises:
        ValueError: If the config, a set, an extractor or the model is invalid.
        OSError: If a file cannot be read or written.
        FloatingPointError: If a value is not finite in sampling.
    """
    check_config(config)
    output = Path(config.output)
    with lock_run(output, "output"):
        originals = None if config.reference is None else open_set(Path(config.reference), config.count)
        if config.pipeline is not None:
            assert originals is not None
            samples = in_order_of(open_set(generate_samples(config, originals, output)), originals.names)
        else:
            samples = open_set(Path(config.samples), config.count)
            if originals is not None and {*samples.names} == {*originals.names}:
                samples = in_order_of(samples, originals.names)
        if not is_first_rank():
            return None
        return _measure(config, samples, originals)


def _measure(config: DictConfig, samples: PanoramaSet, originals: PanoramaSet | None) -> Results:
    output, device = Path(config.output), torch.device(usable_device(config.device))
    height = config.height or samples.panorama(0).shape[1]
    sized = Sized(samples, height, "refuse" if config.height is None else "resize")
    reference = None if originals is None else _reference(config, originals, height)
    wanted = wanted_metrics(config)
    networks = load_extractors(config, wanted, device)
    saved = samples.faces(0)
    face_size = height // 2 if saved is None else saved.pixels.shape[-1]
    cache = Path(config.cache or default_cache())
    draws = config.intervals.panoramas, config.intervals.halves
    settings = Settings(wanted, config.protocol, config.seed, face_size, draws, cache, device)
    evaluation = Evaluation(sized, reference, settings, _progress)
    if originals is not None and (own := originals.panorama(0).shape[1]) != height:
        evaluation.warnings.append(f"the originals were resized from {own} to {height} rows, those of the samples")
    evaluation.measure_faces()
    evaluation.measure_conditions(networks.get("efficientnet_lite0"))
    evaluation.measure_retrieval()
    for name, network in networks.items():
        evaluation.measure_features(name, network, output / "features")
    evaluation.explain_missing()
    results = _results(config, evaluation, networks, height)
    for warning in results.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    write_report(output / REPORT, results, lambda index: _shown(evaluation, output, index))
    write_results(output, results)
    return results


def _reference(config: DictConfig, originals: PanoramaSet, height: int) -> Sized:
    return Sized(originals, height, "shrink" if config.height is None else "resize")


def _results(config: DictConfig, evaluation: Evaluation, networks: dict[str, torch.nn.Module], height: int) -> Results:
    values = dict(evaluation.values)
    left_out = dict(evaluation.measured.left_out)
    for name, number in config.reported.items():
        if name in values:
            values[name] = replace(values[name], reported=float(number))
        else:
            left_out.setdefault(name, f"not measured; reported: {number:g}")
    samples, settings = evaluation.samples, evaluation.settings
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    own = {key: value for key, value in container.items() if key not in ("cache", "output")}
    if config.pipeline is not None:
        own["generate"] = settings_used(config)
    sets = {"samples": samples, "reference": evaluation.originals}
    record: dict[str, object] = {
        **{key: None if each is None else _set_record(each, height) for key, each in sets.items()},
        "pipeline": None if config.pipeline is None else model_record(config.pipeline),
        "faces": {"saved": samples.has_faces(0), "size": settings.face_size},
        "paired": evaluation.is_paired,
        "views": {
            name: _views_record(PROTOCOLS[name], settings.seed, len(samples.names)) for name in _protocols(evaluation)
        },
        "extractors": evaluation.extractors_record(networks),
        "settings": redact_values(own),
        "versions": {
            "cubediff": cubediff.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchmetrics": torchmetrics.__version__,
        },
    }
    captions = [prompts.caption or " · ".join(prompts.faces or ()) for prompts in samples.prompts]
    return Results(values, samples.names, captions, evaluation.measured.terms, left_out, evaluation.warnings, record)


def _protocols(evaluation: Evaluation) -> list[str]:
    used = {protocol for keys in evaluation.keys.values() for protocol in keys}
    return [name for name in PROTOCOLS if name in used]


def _set_record(panoramas: PanoramaSet, height: int) -> dict[str, object]:
    return {
        "path": redact(str(panoramas.path)),
        "panoramas": len(panoramas.names),
        "height": height,
        "sha256": panoramas.digest(),
    }


def _views_record(protocol: ViewProtocol, seed: int, count: int) -> dict[str, object]:
    """The views of a protocol: one list for all panoramas, or one for each."""
    lists = [
        [[view.yaw, view.pitch, view.fov] for view in protocol.views(index, seed)]
        for index in range(1 if protocol.same_for_all else count)
    ]
    return {"size": protocol.size, "seed": seed, "same_for_all": protocol.same_for_all, "yaw_pitch_fov": lists}


def _shown(evaluation: Evaluation, output: Path, index: int) -> Shown:
    """A panorama as the report shows it."""
    page = evaluation.samples.page(index)
    viewer = None if page is None else quote(relpath(page, output).replace(sep, "/"))
    original = evaluation.originals if evaluation.is_paired else None
    return Shown(
        _thumbnail(evaluation.samples, index), None if original is None else _thumbnail(original, index), viewer
    )


def _thumbnail(panoramas: PanoramaSet, index: int) -> bytes:
    small = Sized(panoramas, _THUMBNAIL, "resize").panorama(index)
    return encode_jpeg(to_levels(small), quality=85)


def _progress(items: Iterable[int], total: int, title: str) -> Iterable[int]:
    bar: Iterable[int] = tqdm(items, total=total, desc=title, unit="panorama")
    return bar
