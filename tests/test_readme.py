"""What README and the pages print runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from configs import arguments
from configs.config import default_tree, leaves
from scripts.studies.plan import as_study
from tests.conftest import ROOT

PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in [
        *(ROOT / name for name in ("README.md", "selfreg/README.md", "zoo/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
}
TEXT = "\n".join(PAGES.values())
BLOCKS = re.findall(r"```python\n(.*?)```", PAGES[ROOT / "README.md"], re.DOTALL)


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
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGES[ROOT / "docs/studies.md"], re.DOTALL)
    study = as_study(yaml.safe_load(block), "README")
    assert len(study.runs()) == 5 * 3 and study.min_seeds == 3


@pytest.mark.parametrize("line", re.findall(r"^ {4}python ((?:train|test)\.py .*)$", TEXT, re.MULTILINE))
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
    known |= {"--is_saveni", "--max_epoch"}  # abbreviations, of the published commands
    known |= {"--nproc_per_node", "--long", "--logdir", "--shm-size"}  # of torchrun, pytest, TensorBoard and Docker
    others = ("distributed.md", "migration.md")  # with flags of torchrun, SLURM and the published scripts
    ours = "\n".join(text for page, text in PAGES.items() if page.name not in others)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_0-9-]*", ours)) <= known
    for script in re.findall(r"python ([a-z_/]+\.py)", TEXT):
        assert (ROOT / script).is_file(), script
    for config in re.findall(r"configs/[a-z_0-9/]+\.yaml", TEXT):
        assert (ROOT / config).is_file(), config


def heading_names(text: str) -> set[str]:
    """As GitHub has them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[page]):
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not heading or heading in heading_names(target.read_text(encoding="utf-8")), link


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs/index.md"
    linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", PAGES[index])}
    assert {page for page in PAGES if page not in (index, ROOT / "README.md")} <= linked


def test_readme_is_short() -> None:
    assert len(PAGES[ROOT / "README.md"].encode()) <= 9000


def test_the_page_of_the_configuration_is_made_from_it() -> None:
    made = subprocess.run([sys.executable, ROOT / "docs/configuration.py"], capture_output=True, check=True)
    assert made.stdout.decode() == PAGES[ROOT / "docs/configuration.md"]
    keys = {key for key, value in leaves(default_tree()) if not key.startswith("MODEL.")}
    assert keys <= set(re.findall(r"^\| `([A-Z_.0-9]+)`", made.stdout.decode(), re.MULTILINE))


def test_the_site(tmp_path: Path) -> None:
    """It builds without a warning, so every link and anchor leads somewhere, and it asks no other host for anything."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (requirements-dev.txt)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert built.returncode == 0, built.stderr.decode(errors="replace")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]* src=\"?https?:|<link[^>]* href=\"?https?://fonts", text), (
            page
        )
    assert 'id="selfreg.KDloss.inter_fd"' in (tmp_path / "site/docs/api/index.html").read_text(encoding="utf-8")
