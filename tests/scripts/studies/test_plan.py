"""A study's yaml: the grid that it stands for, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.studies.plan import Run, as_study, read_study
from tests.conftest import ROOT

WEIGHTS = {"LOSS.LAMBDA_1": 0.2, "LOSS.LAMBDA_2": 0}
UNET = {"cfg": "configs/unet_224.yaml", "opts": {"MODEL.UNET.WIDTH": 8}}


def content(**changes: Any) -> dict[str, Any]:
    plain = {
        "networks": {"small": UNET, "swin": {"cfg": "configs/phantom_demo.yaml", "published": [[0, 0.1, 75]]}},
        "lambda_1": [0, 0.1],
        "lambda_2": [0],
        "lambda_x": [0, 0.1],
        "seeds": [3, 4],
        "min_seeds": 2,
        "opts": {"TRAIN.EPOCHS": 2},
    }
    return plain | changes


def test_the_grid() -> None:
    study = as_study(content(folds=2), "x.yaml")
    # lambda_1 with lambda_2 crossed, lambda_x as both, none of them twice.
    runs = study.runs()
    assert [run[1:3] for run in runs[:3]] == [(0, 0), (0.1, 0), (0.1, 0.1)]
    assert len(runs) == len(set(runs)) == 2 * 3 * 2 * 2
    assert len({run.folder for run in runs}) == len(runs)
    # Every cell has a seed before any has the next.
    assert [run.seed for run in runs] == [3] * 12 + [4] * 12
    run = Run("small", 0.1, 0.0, 4, 1)
    assert run.folder == Path("small/lambda_0.1_0/seed_4/fold_1")
    cfg = study.config(run)
    assert (cfg.model.type, cfg.model.options["width"], cfg.train.epochs, cfg.seed) == ("unet", 8, 2, 4)
    assert (cfg.loss.lambda_1, cfg.loss.lambda_2, cfg.data.folds, cfg.data.fold) == (0.1, 0, 2, 1)


def test_variants_and_seeds_of_a_network() -> None:
    variants = {"mean_channel": WEIGHTS | {"LOSS.SCR": "mean", "TRAIN.EPOCHS": 5}}
    networks = {"small": UNET, "few": UNET | {"seeds": [7, 8]}}
    study = as_study(content(variants=variants, networks=networks, seeds=[3, 4, 5]), "x.yaml")
    runs = study.runs()
    assert [run.seed for run in runs] == [*[3] * 4, *[7] * 4, *[4] * 4, *[8] * 4, *[5] * 4]
    assert len({run.folder for run in runs}) == len(runs) == 20
    run = runs[3]
    assert run == Run("small", 0.2, 0, 3, None, "mean_channel") and run.folder == Path("small/mean_channel/seed_3")
    cfg = study.config(run)
    assert (cfg.loss.scr, cfg.loss.lambda_1, cfg.loss.lambda_2, cfg.train.epochs) == ("mean", 0.2, 0, 5)
    assert study.config(runs[0]).loss.scr == "random"


def test_without_min_seeds_it_takes_all() -> None:
    given = content()
    del given["min_seeds"]
    assert as_study(given, "x").min_seeds == 2


def test_opts_are_added_to_those_of_the_yaml(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content()))
    study, plain = read_study(path, ["TEST.SCORE_AT", "network", "TRAIN.EPOCHS", "3"])
    assert plain["opts"] == study.opts == {"TRAIN.EPOCHS": 3, "TEST.SCORE_AT": "network"}
    with pytest.raises(ValueError, match="TEST.SCORE"):
        read_study(path, ["TEST.SCORE", "network"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs/studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_ones(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study, plain = read_study(path)
    assert plain["title"] == study.title and len(study.runs()) >= 4 * study.min_seeds
    assert {run.network for run in study.runs() if run[1:3] == (0, 0)} == {*study.networks}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'?"),
        ({"xyz": 1}, "? The keys are title, commit"),
        ({"networks": {"a": {"config": "x"}}}, "unknown key 'config'; did you mean 'cfg'?"),
        ({"networks": {"a": "unet"}}, "holds 'unet'; expected the keys cfg"),
        ({"networks": {}}, "no runs; expected networks, seeds"),
        ({"networks": {"../a": UNET}}, "network '../a' has cfg 'configs/unet_224.yaml'; expected a name for"),
        ({"networks": {"a": {}}}, "network 'a' has cfg ''; expected"),
        ({"networks": {"a": UNET | {"published": [[0, 1]]}}}, "published is [[0, 1]]; expected rows lambda_1"),
        ({"seeds": []}, "no runs"),
        ({"seeds": [1, 1]}, "seeds is [1, 1], min_seeds 2; expected each seed once"),
        ({"seeds": ["one", "two"]}, "SEED is 'one' (str); expected int"),
        ({"seeds": 3}, "seeds is 3; expected list"),
        ({"min_seeds": 3}, "seeds is [3, 4], min_seeds 3; expected each seed once, and 1 to that many"),
        ({"folds": True}, "folds is True; expected int"),
        ({"opts": None}, "opts is None; expected dict"),
        ({"folds": -2}, "folds from 2, or 0"),
        ({"folds": 1}, "DATA.FOLD is 0 of 1; expected 0, 1, ... of 2 or more"),
        ({"lambda_1": ["much"]}, "LOSS.LAMBDA_1 is 'much' (str); expected float"),
        ({"lambda_1": [-1]}, "LOSS.LAMBDA_1 is -1.0; expected a finite number of at least 0"),
        ({"lambda_x": [float("nan")]}, "expected a finite number"),
        ({"lambda_2": []}, "lambda_1 with lambda_2"),
        ({"variants": {"a": {"LOSS.LAMBDA_1": 0}}}, "variants: 'a' is {'LOSS.LAMBDA_1': 0}; expected a name for a"),
        ({"variants": {"../a": WEIGHTS}}, "variants: '../a' is"),
        ({"variants": {"a": WEIGHTS | {"LOSS.SRC": "mean"}}}, "unknown key LOSS.SRC; did you mean LOSS.SCR?"),
        ({"networks": {"a": UNET | {"seeds": [1]}}}, "seeds is [1], min_seeds 2"),
        ({"opts": {"SEED": 2}}, "opts: SEED is what the grid sets; expected it in seeds"),
        ({"networks": {"a": UNET | {"opts": {"DATA.FOLD": 2}}}}, "opts: DATA.FOLD is what the grid sets"),
        ({"opts": {"TRAIN.EPOCH": 2}}, "unknown key TRAIN.EPOCH; did you mean TRAIN.EPOCHS?"),
        ({"opts": {"TRAIN.EPOCHS": "two"}}, "TRAIN.EPOCHS"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content(**changes)))
    with pytest.raises(ValueError) as caught:
        read_study(path)
    assert message in str(caught.value) and str(caught.value).startswith(str(path))


def test_a_file_that_is_not_there_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.yaml: no such"):
        read_study(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="x: gone.yaml: no such"):
        as_study(content(networks={"a": {"cfg": "gone.yaml"}}), "x")
    for text in ("a: [", "- 1", ""):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match="a.yaml: "):
            read_study(tmp_path / "a.yaml")
