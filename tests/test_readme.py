"""What README prints runs."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
import yaml
from torch import nn

from configs import arguments
from scripts.studies.plan import as_study
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_loss_on_a_network_of_monai(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("monai", reason="monai is not installed (requirements-dev.txt)")
    names: dict = {}
    exec(BLOCKS[0], names)
    assert torch.isfinite(names["loss"]) and any(p.grad is not None for p in names["network"].parameters())
    assert all(name in capsys.readouterr().out for name in names["spec"].encoder[0])


def test_the_loss_on_your_own_network() -> None:
    block = BLOCKS[1]

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enc1 = nn.Conv2d(1, 4, 3, padding=1)
            self.enc2 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
            self.dec1 = nn.ConvTranspose2d(8, 4, 2, stride=2)
            self.head = nn.Conv2d(4, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.dec1(self.enc2(self.enc1(x))))

    network = Own()
    names = {
        "network": network,
        "image": torch.randn(2, 1, 16, 16),
        "label": torch.randint(0, 3, (2, 16, 16)),
        "segmentation_loss": nn.CrossEntropyLoss(),
    }
    exec(block, names)
    names["loss"].backward()
    assert torch.equal(names["logits"], network(names["image"]))
    assert all(p.grad is not None for p in network.parameters())


def test_the_study_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    study = as_study(yaml.safe_load(block), "README")
    assert len(study.runs()) == 5 * 3 and study.min_seeds == 3


@pytest.mark.parametrize("line", re.findall(r"^ {4}python ((?:train|test)\.py .*)$", README, re.MULTILINE))
def test_command_lines_parse(line: str) -> None:
    script, *words = shlex.split(line, comments=True)
    parser = arguments.train_parser() if script == "train.py" else arguments.test_parser()
    parser.parse_args(words)


def test_flags_and_files_exist() -> None:
    parsers = [arguments.train_parser(), arguments.test_parser()]
    parsers += [arguments.gradcam_parser(), arguments.similarity_parser()]
    known = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    for script in [path for room in ("scripts", "analysis") for path in (ROOT / room).glob("*.py")]:
        known |= set(re.findall(r'"(--[a-z_-]+)"', script.read_text(encoding="utf-8")))
    known |= {"--is_saveni", "--max_epoch", "--nproc_per_node"}  # abbreviations of the published commands; torchrun's
    assert set(re.findall(r"--[a-z][a-z_0-9-]*", README)) <= known
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    for script in re.findall(r"python ([a-z_/]+\.py)", README):
        assert (ROOT / script).is_file(), script
    for config in re.findall(r"configs/[a-z_0-9/]+\.yaml", README):
        assert (ROOT / config).is_file(), config
