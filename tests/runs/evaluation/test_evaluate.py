"""Evaluations in this process: what is generated, measured, written and refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from support.clip import small_clip
from support.generating import SAMPLES, save_model
from support.runs import composed

from cubediff.cubemaps.files import read_record
from cubediff.evaluation.consistency import METRICS, value_of
from cubediff.evaluation.distances import frechet_distance, kernel_distance
from cubediff.evaluation.extractors import EfficientNetLite0
from cubediff.evaluation.results import read_results
from cubediff.evaluation.views import PROTOCOLS, render_views
from cubediff.generation.options import PRESETS
from cubediff.generation.outputs import write_generation
from cubediff.geometry import FACES
from cubediff.runs.evaluation.generating import settings_used
from cubediff.runs.evaluation.run import evaluate
from cubediff.runs.lock import RunLockedError, lock_run

FEW = "metrics=[overlap_rms,colour_step,sharpness]"
NAMES = ("courtyard", "dancing_hall", "forest_slope", "hotel_room")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of the samples with their captions, 128 rows high: twice the faces of the model."""
    folder = tmp_path_factory.mktemp("reference")
    lines = (SAMPLES / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if Path(record["file"]).stem in NAMES]
    for record in records:
        image = cv2.imread(str(SAMPLES / record["file"]))
        record["file"] = f"{Path(record['file']).stem}.png"
        cv2.imwrite(str(folder / record["file"]), cv2.resize(image, (256, 128), interpolation=cv2.INTER_AREA))
    (folder / "captions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def evaluated(model: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an evaluation with everything that needs no extractor."""
    output = tmp_path_factory.mktemp("evaluated") / "output"
    run(output, f"pipeline={model}", f"reference={reference}", "extractors.efficientnet_lite0=false")
    return output


def run(output: Path, *overrides: str) -> Path | None:
    """Evaluates with two sampling steps; features of references are cached beside the output."""
    quick = ("generate.steps=2", "device=cpu", f"cache={output.parent}/cache", "intervals.halves=3")
    return evaluate(composed(f"output={output}", *quick, *overrides, name="evaluate"))


def refused(message: str, output: Path, *overrides: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run(output, *overrides)
    assert not (output / "metrics.json").exists()


def captions_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def metrics(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    return content


def saved_faces(output: Path) -> torch.Tensor:
    """The faces of all samples, (P, 6, 3, S, S) in [0, 1], read without the package."""
    folders = sorted((output / "samples").glob("*/faces"))
    stacks = [np.stack([np.array(PIL.Image.open(folder / f"{face}.png")) for face in FACES]) for folder in folders]
    return torch.from_numpy(np.stack(stacks)).permute(0, 1, 4, 2, 3).float() / 255


def views_of(files: list[Path]) -> torch.Tensor:
    images = [torch.from_numpy(np.array(PIL.Image.open(file).convert("RGB"))) for file in files]
    protocol = PROTOCOLS["azimuth8"]
    each = [render_views(x.permute(2, 0, 1) / 255, protocol.views(0), protocol.size).clamp(0, 1) for x in images]
    return torch.cat(each)


def test_the_samples_are_generated_from_the_captions_and_their_faces_saved_before_blending(
    evaluated: Path, reference: Path
) -> None:
    folders = sorted(path.parent for path in (evaluated / "samples").glob("*/generation.json"))
    assert [folder.name for folder in folders] == sorted(NAMES)
    captions = {line["file"].partition(".")[0]: line["caption"] for line in captions_of(reference)}
    for number, folder in enumerate(folders):
        record = json.loads((folder / "generation.json").read_text())
        assert (record["prompt"], record["seed"]) == (captions[folder.name], number)
        saved = read_record(folder / "faces/faces.json")
        assert saved is not None
        assert saved.fov == 95.0
        assert (folder / "panorama.png").is_file()


def test_consistency_is_that_of_the_saved_faces(evaluated: Path) -> None:
    faces, values = saved_faces(evaluated), metrics(evaluated)["metrics"]
    for name, metric in METRICS.items():
        expected = value_of(metric, metric.terms(faces, 95.0))
        assert values[name]["value"] == pytest.approx(expected, rel=1e-5), name
        assert values[name]["low"] <= expected * (1 + 1e-6), name
        assert values[name]["high"] >= expected * (1 - 1e-6), name
        assert values[name]["n"] == 4
    assert values["overlap_rms"]["reference"]["value"] < 0.5 * values["overlap_rms"]["value"]


@pytest.mark.slow
def test_distances_are_those_of_the_views_of_both_sets(evaluated: Path, reference: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    run(output, f"samples={evaluated}/samples", f"reference={reference}")
    network = EfficientNetLite0()
    folders = sorted((evaluated / "samples").glob("*/panorama.png"))
    with torch.inference_mode():
        real, other = (network(views_of(files)) for files in (sorted(reference.glob("*.png")), folders))
    record = metrics(output)
    values = record["metrics"]
    assert values["fd_efficientnet_lite0"]["value"] == pytest.approx(frechet_distance(real, other), rel=1e-4)
    assert values["kd_efficientnet_lite0"]["value"] == pytest.approx(kernel_distance(real, other), rel=1e-4)
    assert values["fd_efficientnet_lite0"]["interval"] == "halves"
    assert any("32 azimuth8 views" in warning for warning in record["warnings"])
    assert record["views"]["azimuth8"]["yaw_pitch_fov"] == [[[45.0 * turn, 0.0, 90.0] for turn in range(8)]]
    assert re.fullmatch("[0-9a-f]{64}", record["extractors"]["efficientnet_lite0"]["sha256"])


def test_a_preset_sets_the_options_without_a_value(model: Path, reference: Path, tmp_path: Path) -> None:
    metrics_only = ("extractors.efficientnet_lite0=false", "metrics=[overlap_rms]", "count=1")
    run(tmp_path, f"pipeline={model}", f"reference={reference}", *metrics_only, "generate.preset=fast")
    settings = metrics(tmp_path)["settings"]["generate"]
    expected = {**PRESETS["fast"], "preset": "fast", "steps": 2}
    assert {key: settings[key] for key in expected} == expected
    (written,) = (tmp_path / "samples").glob("*/generation.json")
    recorded = json.loads(written.read_text())
    assert (recorded["num_inference_steps"], recorded["sampler"]) == (2, "dpm")
    assert recorded["guidance_stop"] == expected["guidance_stop"]
    refused("generate.preset must be one of fast", tmp_path / "other", f"pipeline={model}", f"reference={reference}",
            "generate.preset=magic")  # fmt: skip


def test_the_overlap_average_is_recorded_as_the_model_decides_it_unless_the_config_says_it(
    model: Path, tmp_path: Path
) -> None:
    averaging = tmp_path / "averaging"
    shutil.copytree(model, averaging)
    index = json.loads((model / "model_index.json").read_text())
    (averaging / "model_index.json").write_text(json.dumps({**index, "average_overlap": True}))
    without = tmp_path / "without"
    shutil.copytree(model, without)
    del index["average_overlap"]  # as in folders of earlier versions
    (without / "model_index.json").write_text(json.dumps(index))
    for folder, given, used in (
        (model, "null", False),
        (averaging, "null", True),
        (without, "null", False),
        (model, "true", True),
        (averaging, "false", False),
    ):
        config = composed("output=x", f"pipeline={folder}", f"generate.average_overlap={given}", name="evaluate")
        assert settings_used(config)["average_overlap"] is used, (folder.name, given)
    assert settings_used(composed("output=x", "pipeline=owner/name", name="evaluate"))["average_overlap"] is None


def test_results_record_what_determines_them(evaluated: Path, model: Path) -> None:
    record = metrics(evaluated)
    assert record["samples"]["panoramas"] == record["reference"]["panoramas"] == 4
    assert record["pipeline"]["path"] == str(model)
    assert record["settings"]["generate"]["steps"] == 2
    assert record["settings"]["generate"]["average_overlap"] is False
    assert record["versions"]["torch"] == torch.__version__
    assert (record["views"], record["extractors"]) == ({}, {})
    stored = read_results(evaluated)
    assert stored.names == sorted(NAMES)
    assert value_of(METRICS["overlap_rms"], stored.terms["overlap_rms"]) == record["metrics"]["overlap_rms"]["value"]
    header, row = (line.split(",") for line in (evaluated / "metrics.csv").read_text().splitlines())
    assert float(row[header.index("overlap_rms")]) == record["metrics"]["overlap_rms"]["value"]
    assert float(row[header.index("overlap_rms_high")]) == record["metrics"]["overlap_rms"]["high"]
    assert "courtyard" in (evaluated / "report.html").read_text(encoding="utf-8")


def test_the_same_command_generates_what_is_missing_and_writes_the_same_results(
    model: Path, reference: Path, tmp_path: Path
) -> None:
    output, words = tmp_path / "output", (f"pipeline={model}", f"reference={reference}", FEW)
    run(output, *words)
    before = (output / "metrics.json").read_bytes()
    kept = (output / "samples/courtyard/panorama.png").stat().st_mtime_ns
    (output / "metrics.json").unlink()
    shutil.rmtree(output / "samples/hotel_room")
    run(output, *words)
    assert (output / "metrics.json").read_bytes() == before
    assert (output / "samples/courtyard/panorama.png").stat().st_mtime_ns == kept


def test_a_smaller_count_uses_the_panoramas_of_its_originals_only(
    evaluated: Path, model: Path, reference: Path, tmp_path: Path
) -> None:
    shutil.copytree(evaluated / "samples", tmp_path / "output/samples")
    run(tmp_path / "output", f"pipeline={model}", f"reference={reference}", FEW, "count=2")
    found = metrics(tmp_path / "output")
    assert (found["samples"]["panoramas"], found["paired"]) == (2, True)
    first = read_results(evaluated).terms["overlap_rms"][:2]
    assert torch.equal(read_results(tmp_path / "output").terms["overlap_rms"], first)


def test_samples_of_generate_have_the_same_values(evaluated: Path, tmp_path: Path) -> None:
    run(tmp_path / "output", f"samples={evaluated}/samples", FEW)
    again, first = metrics(tmp_path / "output"), metrics(evaluated)
    for name in ("overlap_rms", "colour_step", "sharpness"):
        assert again["metrics"][name]["value"] == first["metrics"][name]["value"]
        assert "reference" not in again["metrics"][name]
    assert again["reference"] is None
    assert again["extractors"] == {}


def test_a_folder_of_panoramas_is_measured_on_faces_that_are_cut_from_them(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "output", f"samples={reference}", FEW)
    found = metrics(tmp_path / "output")
    assert found["faces"] == {"saved": False, "size": 64}
    assert found["metrics"]["overlap_rms"]["value"] < 0.03
    assert "holds no saved faces" in capsys.readouterr().err
    assert any("holds no saved faces" in warning for warning in found["warnings"])


def rewritten(output: Path, folder: Path, fov: float | None, only: str = "") -> Path:
    """A copy of samples whose faces are written with another field of view, or removed."""
    shutil.copytree(output / "samples", folder)
    for faces in sorted(folder.glob(f"{only or '*'}/faces")):
        if fov is None:
            shutil.rmtree(faces)
        else:
            record = json.loads((faces / "faces.json").read_text())
            (faces / "faces.json").write_text(json.dumps({**record, "field_of_view": fov}))
    return folder


def test_faces_that_do_not_overlap_leave_the_overlap_metrics_out(evaluated: Path, tmp_path: Path) -> None:
    samples = rewritten(evaluated, tmp_path / "samples", 90.0)
    run(tmp_path / "output", f"samples={samples}", "metrics=[overlap_*,edge_step,sharpness]")
    found = metrics(tmp_path / "output")
    assert {*found["metrics"]} == {"edge_step", "sharpness"}
    assert {*found["left_out"]} == {"overlap_rms", "overlap_psnr", "overlap_ssim", "overlap_relative"}
    assert "90" in found["left_out"]["overlap_rms"]


def test_some_panoramas_without_faces_are_refused(evaluated: Path, tmp_path: Path) -> None:
    samples = rewritten(evaluated, tmp_path / "samples", None, only="dancing_hall")
    message = "1 of 4 panoramas have no saved faces, first dancing_hall: generate all of them with --save-faces"
    refused(message, tmp_path / "output", f"samples={samples}", FEW)


def test_a_folder_without_its_panorama_is_refused(evaluated: Path, tmp_path: Path) -> None:
    samples = rewritten(evaluated, tmp_path / "samples", 95.0)
    (samples / "courtyard/panorama.png").unlink()
    refused("courtyard: expected one panorama, found 0", tmp_path / "output", f"samples={samples}", FEW)


def test_originals_of_another_size(evaluated: Path, reference: Path, tmp_path: Path) -> None:
    larger, smaller = tmp_path / "larger", tmp_path / "smaller"
    for folder, rows in ((larger, 256), (smaller, 64)):
        shutil.copytree(reference, folder)
        for file in folder.glob("*.png"):
            cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file)), (2 * rows, rows), interpolation=cv2.INTER_AREA))
    samples = f"samples={evaluated}/samples"
    run(tmp_path / "one", samples, f"reference={larger}", FEW)
    assert "the originals were resized from 256 to 128 rows" in metrics(tmp_path / "one")["warnings"][0]
    message = "has 64 rows, expected 128: pass height=ROWS to resize all panoramas"
    refused(message, tmp_path / "two", samples, f"reference={smaller}", FEW)
    run(tmp_path / "three", samples, f"reference={smaller}", FEW, "height=64")
    assert metrics(tmp_path / "three")["reference"]["height"] == 64


def test_captions_that_the_condition_needs(model: Path, reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    shutil.copytree(reference, folder)
    lines = captions_of(folder)
    del lines[1]["faces"]
    lines[2]["caption"] = ""
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    from_it = f"pipeline={model}", f"reference={folder}"
    message = "1 of 4 panoramas have no captions, first dancing_hall: condition=six_texts needs six captions"
    refused(message, tmp_path / "output", *from_it, "condition=six_texts")
    refused("first forest_slope: condition=text needs a caption", tmp_path / "output", *from_it)
    (folder / "captions.jsonl").write_text(json.dumps({"file": "gone.png", "caption": "a hall"}) + "\n")
    refused("gone.png", tmp_path / "output", *from_it)


def written(folder: Path, name: str, faces: torch.Tensor, record: dict[str, object]) -> None:
    """Writes what `cubediff generate --save-faces --face-fov 95` writes, from given faces."""
    from cubediff.cubemaps.files import CubemapFormat
    from cubediff.geometry import cube_to_equirect
    from cubediff.images.writing import to_pil

    panorama = cube_to_equirect(faces[None], 2 * faces.shape[-1], 95.0)
    write_generation(
        folder / name, to_pil(panorama)[0], to_pil(faces), record, fov=95.0, prompt="",
        save_faces=CubemapFormat(fov=95.0), format="png",
    )  # fmt: skip


def test_a_photo_is_compared_where_it_covers_the_faces_and_the_original_elsewhere(
    reference: Path, tmp_path: Path
) -> None:
    """The front faces are the photos, the others are the originals' with a known error."""
    from cubediff.geometry import equirect_to_cube

    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(sorted(NAMES)):
        image = torch.from_numpy(np.array(PIL.Image.open(reference / f"{name}.png"))).permute(2, 0, 1)[None]
        faces = (equirect_to_cube(image.float(), 64, 95.0, mode="bicubic")[0].clamp(0, 255) / 2 + 64).round()
        photo = photos / f"{name}.png"
        PIL.Image.fromarray(faces[0].byte().permute(1, 2, 0).numpy()).save(photo)
        faces[1:] += 8
        camera = {"file": str(photo), "fov": 95.0, "yaw": 0.0, "pitch": 0.0, "roll": 0.0}
        written(tmp_path / "samples", name, faces / 127.5 - 1, {"prompt": None, "images": [camera], "seed": number})
    run(tmp_path / "output", f"samples={tmp_path}/samples", f"reference={reference}", "metrics=[condition_*,rest_*]")
    found = metrics(tmp_path / "output")["metrics"]
    assert found["condition_psnr"]["value"] == 100.0  # the highest that counts: pixels are equal
    assert found["condition_ssim"]["value"] == pytest.approx(1.0)
    assert found["condition_perceptual_efficientnet_lite0"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert 10 < found["rest_psnr"]["value"] < 30
    assert found["rest_ssim"]["value"] < 0.99
    assert found["rest_perceptual_efficientnet_lite0"]["value"] > 0.01


def test_metrics_without_a_value_say_why(evaluated: Path, reference: Path, tmp_path: Path) -> None:
    samples = f"samples={evaluated}/samples"
    run(tmp_path / "one", samples, "metrics=[sharpness,fd_*,retrieval_psnr,condition_psnr]")
    left_out = metrics(tmp_path / "one")["left_out"]
    assert left_out["fd_efficientnet_lite0"] == left_out["retrieval_psnr"] == "there is no reference"
    assert left_out["condition_psnr"] == "the samples were not generated from photos"
    copied = tmp_path / "copied"
    shutil.copytree(evaluated / "samples", copied)
    for record in copied.glob("*/generation.json"):
        content = {**json.loads(record.read_text()), "images": [{"file": "gone.png", "fov": 95.0}]}
        record.write_text(json.dumps(content))
    run(tmp_path / "two", f"samples={copied}", "metrics=[sharpness,condition_psnr]")
    assert "gone.png: not a readable image" in metrics(tmp_path / "two")["left_out"]["condition_psnr"]
    assert {*metrics(tmp_path / "two")["metrics"]} == {"sharpness"}


def test_photo_condition_gives_the_front_face(model: Path, reference: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    run(output, f"pipeline={model}", f"reference={reference}", "condition=photo", "count=1", "metrics=[*psnr]")
    record = json.loads((output / "samples/courtyard/generation.json").read_text())
    assert record["prompt"] is None
    assert record["images"][0]["fov"] == 95.0
    assert {"condition_psnr", "rest_psnr", "retrieval_psnr"} <= {*metrics(output)["metrics"]}


@pytest.mark.slow
def test_real_panoramas_are_retrieved_also_when_they_are_turned(reference: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned"
    turned.mkdir()
    for file in reference.glob("*.png"):
        cv2.imwrite(str(turned / file.name), np.roll(cv2.imread(str(file)), 64, axis=1))
    run(tmp_path / "output", f"samples={turned}", f"reference={reference}", "metrics=[retrieval_*]", "count=3")
    found = metrics(tmp_path / "output")["metrics"]
    assert found["retrieval_psnr"]["value"] == found["retrieval_efficientnet_lite0"]["value"] == 1.0


def test_sets_of_other_panoramas_are_not_compared_one_by_one(evaluated: Path, reference: Path, tmp_path: Path) -> None:
    run(
        tmp_path / "output",
        f"samples={evaluated}/samples",
        f"reference={reference}",
        "count=3",
        "metrics=[retrieval_psnr]",
    )
    assert metrics(tmp_path / "output")["paired"] is True
    names = read_results(tmp_path / "output").names
    assert names == sorted(NAMES)[:3]
    folder = tmp_path / "others"
    folder.mkdir()
    for file in reference.glob("*.png"):
        shutil.copy(file, folder / f"other_{file.name}")
    run(tmp_path / "two", f"samples={evaluated}/samples", f"reference={folder}", "metrics=[retrieval_psnr,sharpness]")
    found = metrics(tmp_path / "two")
    assert found["paired"] is False
    assert {*found["metrics"]} == {"sharpness"}
    assert "names" in found["left_out"]["retrieval_psnr"]


@pytest.mark.slow
def test_clip_scores_captions(reference: Path, tmp_path: Path) -> None:
    clip = small_clip(tmp_path / "clip")
    run(
        tmp_path / "output", f"samples={reference}", f"reference={reference}", f"extractors.clip={clip}",
        "metrics=[clip_*,cmmd,fits_*,omnifd_pooled_clip]", "extractors.efficientnet_lite0=false", "count=2",
    )  # fmt: skip
    found = metrics(tmp_path / "output")
    assert {*found["metrics"]} == {
        "clip_score", "clip_score_faces", "clip_fid", "cmmd", "fits_upright", "fits_unflipped", "omnifd_pooled_clip"
    }  # fmt: skip
    assert found["metrics"]["clip_fid"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert any("captions are longer than CLIP reads" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "neither pipeline and samples"),
        (["samples=a", "pipeline=b"], "both pipeline and samples"),
        (["pipeline=b"], "reference is missing"),
        (["samples=a", "protocol=azimuth9"], "protocol=azimuth9: use one of cubediff_paper, azimuth8, panfusion"),
        (["samples=a", "metrics=[overlap_rmse]"], "did you mean overlap_rms?"),
        (["samples=a", "metrics=[fid]"], "metrics has fid, which matches no metric of the extractors that are on"),
        (["samples=a", "count=0"], "count=0: expected a positive integer"),
        (["samples=a", "+extractors.vgg=true"], "extractors.vgg is unknown: use efficientnet_lite0, inception"),
        (["samples=a"], "a does not exist: pass a folder of panoramas"),
        (["samples=a", "seed=-1"], "seed=-1: expected an integer of at least 0"),
    ],
)
def test_config_is_checked_first(overrides: list[str], message: str, tmp_path: Path) -> None:
    refused(message, tmp_path / "output", *overrides)


def test_generation_options_are_checked_by_their_keys(model: Path, reference: Path, tmp_path: Path) -> None:
    words = f"pipeline={model}", f"reference={reference}"
    refused("generate.sampler must be one of ddim", tmp_path / "output", *words, "generate.sampler=heun")
    refused("generate.guidance_scale must be a finite num", tmp_path / "output", *words, "generate.guidance_scale=-3")
    refused("generate.batch=0: expected a positive integer", tmp_path / "output", *words, "generate.batch=0")
    refused("condition=image: use one of text", tmp_path / "output", *words, "condition=image")
    refused("holds 4 panoramas, and count=9", tmp_path / "output", *words, "count=9")


def test_extractors_of_another_kind_are_refused(reference: Path, tmp_path: Path) -> None:
    words = f"samples={reference}", f"reference={reference}"
    weights = tmp_path / "weights.pth"
    torch.save({"layer": torch.zeros(1)}, weights)
    message = "does not hold the weights of weights-inception-2015-12-05-6726825d.pth of torch-fidelity"
    refused(message, tmp_path / "output", *words, f"extractors.inception={weights}")
    refused("expected a folder of transformers", tmp_path / "output", *words, f"extractors.clip={reference}")
    refused(
        "extractors.dinov2=gone does not exist: pass a folder", tmp_path / "output", *words, "extractors.dinov2=gone"
    )
    refused("expected true or false", tmp_path / "output", *words, f"extractors.efficientnet_lite0={reference}")
    refused("extractors.clip=True: expected the path", tmp_path / "output", *words, "extractors.clip=true")


def test_features_that_are_not_finite_name_their_panorama(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EfficientNetLite0, "forward", lambda self, views: torch.full((len(views), 1280), torch.nan))
    message = f"efficientnet_lite0 gives features that are not finite for courtyard of {reference}"
    refused(message, tmp_path / "output", f"samples={reference}", f"reference={reference}", "metrics=[fd_*]")


def test_two_evaluations_do_not_write_to_one_folder(reference: Path, tmp_path: Path) -> None:
    with (
        lock_run(tmp_path / "output", "output"),
        pytest.raises(RunLockedError, match="wait until it ends, or choose another output"),
    ):
        run(tmp_path / "output", f"samples={reference}", FEW)


def test_reported_values_stand_beside_ours(evaluated: Path, tmp_path: Path) -> None:
    run(tmp_path / "output", f"samples={evaluated}/samples", FEW, "+reported.sharpness=0.5", "+reported.fid=9.5")
    found = metrics(tmp_path / "output")
    assert found["metrics"]["sharpness"]["reported"] == 0.5
    assert found["left_out"]["fid"] == "not measured; reported: 9.5"


@pytest.mark.parametrize("name", ["cubediff_table1", "opencubediff", "360anything", "panfusion_views"])
def test_published_tables_compose(name: str) -> None:
    config = composed("output=o", "samples=s", f"evaluation={name}", name="evaluate")
    assert config.protocol in PROTOCOLS
    if "rows" in config:
        assert config.rows[config.row].reported == config.reported
    if name == "cubediff_table1":
        assert dict(config.reported) == {"fid": 9.5, "kid": 0.32, "clip_fid": 3.2}
        assert composed("output=o", f"evaluation={name}", "row=laval_photo", name="evaluate").condition == "photo"
