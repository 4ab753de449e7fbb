"""study.py: a small grid trained, tested and reported by the command, called again, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import study
from tests.conftest import ROOT, make_synapse
from tests.scripts.studies.test_results import made


def plan(**changes: Any) -> dict[str, Any]:
    """Two runs of a U-Net that train in no time."""
    network = {"cfg": str(ROOT / "configs/unet_224.yaml"), "opts": {"MODEL.UNET.WIDTH": 4, "DATA.IMG_SIZE": 32}}
    opts = {"TRAIN.EPOCHS": 1, "DATA.BATCH_SIZE": 6, "DATA.NUM_WORKERS": 0}
    plain = {"networks": {"unet": network}, "lambda_x": [0, 0.1], "seeds": [1], "min_seeds": 1, "opts": opts}
    return plain | changes


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def tables(capsys: pytest.CaptureFixture) -> list[str]:
    """The rows of what was printed."""
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]


def times(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "results.json"
    }


def test_from_the_yaml_to_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture, refused: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = make_synapse(tmp_path / "Synapse", train=4, test=1), tmp_path / "out"
    path = write(tmp_path / "study.yaml", plan(lambda_x=[0.1], folds=2))
    words = [str(path), "--output_dir", str(out), "--root_path", str(root), "--devices", "cpu", "cpu"]
    assert study.main(words) == 0
    table = tables(capsys)
    runs = json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"]
    assert sorted((run["lambda_1"], run["lambda_2"], run["seed"], run["fold"]) for run in runs) == [
        (0.1, 0.1, 1, 0),
        (0.1, 0.1, 1, 1),
    ]
    for run in runs:
        assert len(run["cases"]) == 2 and set(run["seconds"]) == {"train", "test", "similarity"}
        assert run["validation"] is None and [layer["layer"] for layer in run["layers"]][-1] == "final"
    assert {name for run in runs for name in run["cases"]} == {f"case{number:04d}" for number in range(4)}
    assert str(tmp_path) not in (out / "results.json").read_text(encoding="utf-8").replace(str(ROOT), "")
    assert any(row.startswith("| unet | 0.1 | 0.1 | 1 | - |") for row in table)

    before = times(out)
    assert study.main(words) == 0
    assert tables(capsys) == table and times(out) == before
    figure = tmp_path / "new/study.png"
    assert study.main([str(out / "results.json"), "--figure", str(figure)]) == 0
    assert tables(capsys) == table and figure.stat().st_size > 1000

    # What the results hold is done, wherever its folder is: another machine goes on from them alone.
    kept, again = tmp_path / "kept.json", tmp_path / "again"
    shutil.copy(out / "results.json", kept)
    with monkeypatch.context() as patch:
        patch.setattr("asyncio.create_subprocess_exec", None)
        assert study.main([str(path), "--output_dir", str(again), "--results", str(kept)]) == 0
    assert tables(capsys) == table and kept.read_bytes() == (out / "results.json").read_bytes()

    write(path, plan(lambda_x=[0.1], folds=2, opts=plan()["opts"] | {"TRAIN.BASE_LR": 0.5}))
    error = refused(study.main, words)
    assert "results.json: holds results of protocol" in error and "expected one protocol in a file" in error
    error = refused(study.main, [*words, "--results", str(tmp_path / "new.json")])
    assert "fold_0/config.yaml: TRAIN.BASE_LR is 0.5 but the run was begun with" in error
    assert times(out) == before
    write(path, plan(lambda_x=[0.1], folds=2, commit="0" * 40))
    error = refused(study.main, words)
    assert f"study.yaml: its commit is {'0' * 40}, and this copy is " in error


def test_a_few_runs_at_a_time_and_development(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, out = make_synapse(tmp_path / "Synapse", train=2, test=1), tmp_path / "out"
    opts = plan()["opts"] | {"DATA.VAL_CASES": 1}
    path = write(tmp_path / "study.yaml", plan(development=True, opts=opts))
    words = [str(path), "--output_dir", str(out), "--root_path", str(root), "--devices", "cpu", "--most", "1"]
    assert study.main(words) == 0
    assert "| 0 | not reported |" in capsys.readouterr().out
    assert len(json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"]) == 1
    assert study.main(words) == 0
    (first, second) = json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"]
    assert (first["lambda_1"], second["lambda_1"]) == (0, 0.1)
    assert set(first["seconds"]) == {"train"} and not first["cases"] and first["validation"]["epoch"] == 1
    assert not (out / "unet/lambda_0_0/seed_1/summary.json").exists(), "no test case is read"


def test_an_interrupted_training_is_not_a_result(tmp_path: Path) -> None:
    """In development as in a study; called again, it ends where it would have ended."""
    root, out = make_synapse(tmp_path / "Synapse", train=2, test=1), tmp_path / "out"
    opts = plan()["opts"] | {"DATA.VAL_CASES": 1, "TRAIN.EPOCHS": 2, "TRAIN.VAL_FREQ": 1}
    path = write(tmp_path / "study.yaml", plan(lambda_x=[0], development=True, opts=opts))
    words = [str(path), "--output_dir", str(out), "--root_path", str(root), "--devices", "cpu"]
    assert study.main(words) == 0
    whole = json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"]
    run = out / "unet/lambda_0_0/seed_1"
    for name in ("results.json", *(str((run / name).relative_to(out)) for name in ("last.pth", "metrics.jsonl"))):
        (out / name).unlink()  # as after an interruption before the first save
    assert study.main([*words, "--most", "0"]) == 0
    assert json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"] == []
    assert study.main(words) == 0
    (again,) = json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"]
    assert again["validation"] == whole[0]["validation"]


def test_refusals(tmp_path: Path, refused: Callable) -> None:
    out = ["--output_dir", tmp_path / "out"]
    path = write(tmp_path / "study.yaml", plan(sedes=[1]))
    assert "study.yaml: unknown key 'sedes'; did you mean 'seeds'?" in refused(study.main, [path, *out])
    assert "none.yaml: no such" in refused(study.main, [tmp_path / "none.yaml", *out])
    assert "none.json: " in refused(study.main, [tmp_path / "none.json"])
    write(path, plan())
    assert "--output_dir is not given" in refused(study.main, [path])
    assert "is given beside others" in refused(study.main, [path, tmp_path / "none.json"])
    assert "--devices is gpu; expected cpu" in refused(study.main, [path, *out, "--devices", "gpu"])
    for text in ("{", "{}", "[]", '{"study": {"networks": 3}}'):
        (tmp_path / "results.json").write_text(text)
        assert "results.json: " in refused(study.main, [tmp_path / "results.json"])
    assert not (tmp_path / "out").exists()
    fewer = made()
    fewer["runs"] = fewer["runs"][:1]
    (tmp_path / "results.json").write_text(json.dumps(fewer))
    error = refused(study.main, [tmp_path / "results.json", "--figure", tmp_path / "a.png"])
    assert "no cell of the study has the seeds" in error and not (tmp_path / "a.png").exists()
    (tmp_path / "results.json").write_text(json.dumps(made()))
    error = refused(study.main, [tmp_path / "results.json", "--figure", tmp_path / "a.abc"])
    assert "results.json: Format 'abc' is not supported" in error and not (tmp_path / "a.abc").exists()


def test_files_of_one_name_in_two_folders_are_both_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = [tmp_path / folder / "results.json" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps(made()))
    assert study.main([*map(str, paths), "--figure", str(tmp_path / "a.png")]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("## ")] == [f"## {path}" for path in paths]


def test_a_run_that_fails_is_said_and_not_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(tmp_path / "study.yaml", plan(lambda_x=[0]))
    words = [
        str(path),
        "--output_dir",
        str(tmp_path / "out"),
        "--root_path",
        str(tmp_path / "nothing"),
        "--devices",
        "cpu",
    ]
    assert study.main(words) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and f"study.py: error: {tmp_path / 'out'}: a run failed" in shown.err
    assert "| unet | 0 | 0 | 0 of the 1 that it takes: not reported |" in shown.out
    assert "train ended with code 2: train.py: error: " in shown.err + shown.out
