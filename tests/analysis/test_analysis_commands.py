"""gradcam.py and similarity.py as a user runs them: what they write, and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image

from analysis import gradcam, similarity
from analysis.layers import spread_slices
from datasets.case import Volume
from datasets.readers.arrays import read_arrays
from datasets.sets.synapse import volume_path
from networks import build_network
from tests.test_commands import write_ct

COMMANDS = {"gradcam": gradcam.main, "similarity": similarity.main}


def words(run: Path, out: Path, *more: object) -> list[str]:
    return [str(word) for word in ("--checkpoint", run, "--output", out, *more)]


@pytest.fixture(scope="module")
def analysed(trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both commands write of a run."""
    out = tmp_path_factory.mktemp("analysed")
    for command in COMMANDS.values():
        assert command(words(trained[1], out)) == 0
    return out


def test_similarity_writes_a_figure_numbers_and_matrices(analysed: Path) -> None:
    found = json.loads((analysed / "similarity.json").read_text(encoding="utf-8"))
    assert (found["network"], found["dataset"], found["images"]) == ("swin_unet", "Synapse", 6)
    rows = {row["layer"]: row for row in found["layers"]}
    assert list(rows) == [
        *(f"encoder[{k}][{b}]" for k in range(4) for b in range(2)),
        *(f"decoder[{k}][{b}]" for k in range(3) for b in range(2)),
        "final",
    ]
    assert rows["encoder[1][0]"]["module"] == "swin_unet.layers.1.blocks.0"
    with np.load(analysed / "similarity.npz") as arrays:
        for label, row in rows.items():
            matrix = arrays[f"{label}.correlation"]
            assert matrix.shape == (row["channels"], row["channels"])
            others = ~np.eye(len(matrix), dtype=bool)
            assert row["mean_abs_correlation"]["all"] == pytest.approx(np.nanmean(np.abs(matrix[others])), abs=1e-6)
            assert 1 <= row["effective_rank"]["all"] <= row["channels"]
    drawn = matplotlib.image.imread(analysed / "similarity.png")
    assert drawn.shape[1] > 2 * drawn.shape[0] and drawn[..., :3].std() > 0.1


def only(folder: Path, pattern: str) -> Path:
    """The one file of a folder whose name is like that."""
    (path,) = folder.glob(pattern)
    return path


def test_gradcam_writes_a_strip_numbers_and_maps(analysed: Path) -> None:
    found = json.loads(only(analysed, "gradcam_case0100_*.json").read_text(encoding="utf-8"))
    assert found["class_name"] != "background" and found["logits_summed_over"] in ("prediction", "all")
    assert [row["layer"] for row in found["layers"]] == [
        *(f"encoder[{k}][1]" for k in range(4)),
        *(f"decoder[{k}][1]" for k in range(3)),
        "final",
    ]
    with np.load(only(analysed, "gradcam_case0100_*.npz")) as arrays:
        for row in found["layers"]:
            heat, own = arrays[f"{row['layer']}.heat"], arrays[f"{row['layer']}.map"]
            assert heat.shape == (40, 40) and list(own.shape) == row["map_size"]
            if row["peak"]:
                assert heat[tuple(row["peak"])] == heat.max() == 1
            assert row["share_in_truth"] is None or 0 <= row["share_in_truth"] <= 1
    drawn = matplotlib.image.imread(only(analysed, "gradcam_case0100_*.png"))
    assert 3 > drawn.shape[1] / drawn.shape[0] > 1.2 and drawn[..., :3].std() > 0.1


def test_the_fractions_are_those_of_the_heat(trained: tuple[Path, Path], tmp_path: Path) -> None:
    more = ("--case", "case0101", "--slice", 2, "--class", "Left Kidney", "--layers", "final", "swin_unet.norm_up")
    assert gradcam.main(words(trained[1], tmp_path, *more)) == 0
    found = json.loads((tmp_path / "gradcam_case0101_slice2_left_kidney.json").read_text(encoding="utf-8"))
    assert (found["slice"], found["class"], found["class_name"]) == (2, 3, "left kidney")
    truth = read_arrays(volume_path(trained[0] / "test_vol_h5", "case0101"), ["label"])["label"][1] == 3
    assert found["truth_share_of_pixels"] == pytest.approx(truth.mean()) and truth.any()
    assert [row["layer"] for row in found["layers"]] == ["final", "swin_unet.norm_up"]
    with np.load(tmp_path / "gradcam_case0101_slice2_left_kidney.npz") as arrays:
        for row in found["layers"]:
            heat = arrays[f"{row['layer']}.heat"]
            expected = heat[truth].sum() / heat.sum() if heat.any() else None
            assert row["share_in_truth"] == pytest.approx(expected, rel=1e-5)


def test_layers_and_images_that_are_asked_for(trained: tuple[Path, Path], tmp_path: Path) -> None:
    layers = ("--layers", "swin_unet.patch_embed.proj", "decoder[0][1]", "--images", 2)
    assert similarity.main(words(trained[1], tmp_path, *layers)) == 0
    found = json.loads((tmp_path / "similarity.json").read_text(encoding="utf-8"))
    assert found["images"] == 2
    assert [(row["layer"], row["module"], row["channels"]) for row in found["layers"]] == [
        ("swin_unet.patch_embed.proj", "swin_unet.patch_embed.proj", 8),
        ("decoder[0][1]", "swin_unet.layers_up.1.blocks.1", 32),
    ]


def test_a_ct_without_labels(trained: tuple[Path, Path], tmp_path: Path) -> None:
    path = write_ct(tmp_path / "patient.nii.gz")
    for command in COMMANDS.values():
        assert command(words(trained[1], tmp_path / "out", "--input", path)) == 0
    found = json.loads(only(tmp_path, "out/gradcam_patient_*.json").read_text(encoding="utf-8"))
    assert 1 <= found["slice"] <= 5 and found["truth_share_of_pixels"] is None
    assert {row["share_in_truth"] for row in found["layers"]} == {None}
    assert json.loads((tmp_path / "out/similarity.json").read_text(encoding="utf-8"))["images"] == 5


def test_a_color_image_that_is_not_square(tmp_path: Path) -> None:
    """Weights from elsewhere, three channels, nothing predicted that is known: the file alone."""
    torch.save(build_network("unet", num_classes=2, in_channels=3, width=4).state_dict(), tmp_path / "unet.pth")
    pixels = np.random.default_rng(0).integers(0, 255, (37, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "tile.png")
    more = ["--dataset", "GlaS", "--img_size", "48", "32", "--input", str(tmp_path / "tile.png")]
    more += ["--opts", "MODEL.TYPE", "unet", "MODEL.UNET.WIDTH", "4"]
    for command in COMMANDS.values():
        assert command(words(tmp_path / "unet.pth", tmp_path / "out", *more)) == 0
    with np.load(only(tmp_path, "out/gradcam_tile_*.npz")) as arrays:
        assert arrays["final.heat"].shape == (37, 61) and arrays["final.map"].shape == (48, 32)


def test_a_class_that_is_predicted_nowhere_is_said(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Two classes with the same weights: where both are highest, the first is predicted."""
    run = Path(shutil.copytree(trained[1], tmp_path / "run"))
    state = torch.load(run / "best.pth", weights_only=True)
    state["swin_unet.output.weight"][5] = state["swin_unet.output.weight"][1]
    torch.save(state, run / "best.pth")
    assert gradcam.main(words(run, tmp_path / "out", "--class", "liver", "--layers", "encoder[0][0]")) == 0
    assert "liver is predicted nowhere in slice" in capsys.readouterr().out
    found = json.loads(only(tmp_path, "out/gradcam_case0100_*.json").read_text(encoding="utf-8"))
    assert (found["logits_summed_over"], found["prediction_share_of_pixels"]) == ("all", 0)
    assert found["layers"][0]["share_in_prediction"] is None


def test_sliding_windows_are_not_used(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    more = ("--layers", "final", "--images", 1, "--opts", "TEST.INFERENCE", "slide")
    assert similarity.main(words(trained[1], tmp_path, *more)) == 0
    assert "TEST.INFERENCE is slide: here, every slice is resized" in capsys.readouterr().out


def test_slices_are_spread_over_those_with_a_label() -> None:
    label = np.zeros((6, 4, 4), np.uint8)
    label[[1, 4], 0, 0] = 1
    volumes = [
        Volume("a", np.zeros((6, 4, 4), np.float32), label),
        Volume("b", np.zeros((3, 4, 4), np.float32), None),
        Volume("c", np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4), np.uint8)),
    ]
    slices = spread_slices(volumes, 100)
    assert slices == [(0, 1), (0, 4), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    assert spread_slices(volumes, 3) == [slices[0], slices[3], slices[6]]
    assert len(spread_slices(volumes, 1)) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_refusals_of_both(name: str, trained: tuple[Path, Path], tmp_path: Path, refused: Callable) -> None:
    run, out = trained[1], tmp_path / "out"

    def message(*more: object, of: Path = run) -> str:
        return refused(COMMANDS[name], words(of, out, *more))

    for layer, said in {
        "swin_unet.layer.1": "--layers: SwinUnet has no module 'swin_unet.layer.1'; close names: swin_unet.layers.1",
        "swin_unet.layers": "--layers: module 'swin_unet.layers' did not run",
        "swin_unet.layers.0.blocks.0.mlp": "gave a tensor of shape (1, 64, 8); expected a map",
        "swin_unet.layers.0.blocks.0.attn.softmax": "gave 4 maps for one image",
    }.items():
        assert said in message("--layers", "final", layer)
    assert "holds no weights" in message(of=tmp_path)
    assert "absent.nii.gz: is not there" in message("--input", "absent.nii.gz")
    assert not out.exists(), "nothing half-written"


def test_refusals_of_gradcam(trained: tuple[Path, Path], tmp_path: Path, refused: Callable) -> None:
    out = tmp_path / "out"

    def message(*more: object) -> str:
        return refused(gradcam.main, words(trained[1], out, *more))

    assert "there is no case 'case0110' among 2; expected one such as case010" in message("--case", "case0110")
    assert "--slice is 4; expected 1..3, case0100 has so many" in message("--slice", 4)
    assert "--class is 'heart'; expected 0..8 or one of background, aorta" in message("--class", "heart")
    assert "--class is '9'" in message("--class", "9")
    assert not out.exists()


def test_no_images(trained: tuple[Path, Path], tmp_path: Path, refused: Callable) -> None:
    assert "--images is 0; expected at least 1" in refused(similarity.main, words(trained[1], tmp_path, "--images", 0))
