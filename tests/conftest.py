"""What several tests share: a small data set in the Synapse layout, the golden figures, commands run in-process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import train as train_command
from datasets.case import slice_name
from datasets.sets.synapse import slice_path, volume_path, write
from tests.pretended_gpu import gpu  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# A Swin-UNet that trains in milliseconds: 32 pixels, windows of 4.
TINY_SWIN = ["MODEL.SWIN.EMBED_DIM", "8", "MODEL.SWIN.NUM_HEADS", "[1, 2, 2, 4]", "MODEL.SWIN.WINDOW_SIZE", "4"]

NETWORK = ["--img_size", "32", "--opts", *TINY_SWIN]
SMALL = ["--batch_size", "4", "--workers", "0", *NETWORK]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the tests marked long, and the long form of others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="--long"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests counted by `record_property("counted", ...)`."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    lines = [value for report in reports for name, value in report.user_properties if name == "counted"]
    if lines:
        terminalreporter.section("counted")
        for line in sorted(lines):
            terminalreporter.write_line(line)


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form was asked for (--long)."""
    return request.config.getoption("--long")


def make_case(seed: int, shape: tuple[int, int, int], num_classes: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """An image (D, H, W) in [0, 1] and a label of blocks whose brightness tells their class."""
    rng = np.random.default_rng(seed)
    depth, height, width = shape
    label = rng.integers(0, num_classes, (depth, -(-height // 8), -(-width // 8))).astype(np.uint8)
    label = label.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    image = label / num_classes + rng.normal(0, 0.02, shape)
    return image.clip(0, 1).astype(np.float32), label


def make_synapse(root: Path, *, train: int = 2, test: int = 1, shape: tuple[int, int, int] = (3, 40, 40)) -> Path:
    """Write cases in the Synapse layout, with lists beside them; returns `root`."""
    (root / "train_npz").mkdir(parents=True)
    (root / "test_vol_h5").mkdir()
    (root / "lists").mkdir()
    names = []
    for case in range(train):
        image, label = make_case(case, shape)
        for index in range(shape[0]):
            names.append(slice_name(f"case{case:04d}", index))
            write(slice_path(root / "train_npz", names[-1]), image[index], label[index])
    for case in range(test):
        write(volume_path(root / "test_vol_h5", f"case{100 + case:04d}"), *make_case(100 + case, shape))
    (root / "lists" / "train.txt").write_text("\n".join(names) + "\n")
    (root / "lists" / "test_vol.txt").write_text("".join(f"case{100 + case:04d}\n" for case in range(test)))
    return root


@pytest.fixture
def synapse(tmp_path: Path) -> Path:
    """Two training cases of three slices and one test volume, 40 x 40, nine classes."""
    return make_synapse(tmp_path / "Synapse")


def train(root: Path, out: Path, *words: object) -> int:
    flags = [str(word) for word in words]
    return train_command.main(
        [
            "--dataset",
            "Synapse",
            "--root_path",
            str(root),
            "--output_dir",
            str(out),
            "--max_epochs",
            "2",
            *flags,
            *SMALL,
        ]
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data folder and a run on it."""
    folder = tmp_path_factory.mktemp("trained")
    root = make_synapse(folder / "Synapse", train=3, test=2)
    assert train(root, folder / "run", "--val_cases", 1) == 0
    return root, folder / "run"


@pytest.fixture
def run(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(trained[1], tmp_path / "run"))


def geometry(path: Path) -> tuple:
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run a command's main(argv); asserts exit code 2 and one line on standard error, without traceback; returns it."""

    def run(main: Callable, argv: list) -> str:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        error = capsys.readouterr().err
        assert code == 2, f"exit code {code}: {error}"
        assert error.count("\n") == 1 and error.endswith("\n"), error
        assert "Traceback" not in error
        return error

    return run


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)
