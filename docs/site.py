"""A hook of mkdocs: the site holds README and all files that it links to, directly or not, under their own paths."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
FENCE = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".cff": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by the pages, images and sources that README leads to."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    found: set[str] = set()
    left = ["README.md"]
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        if is_source(path):
            files.append(File.generated(config, f"{path}.md", content=as_page(ROOT / path)))
            continue
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
        if path.endswith(".md"):
            links = LINK.findall((ROOT / path).read_text(encoding="utf-8"))
            left += [posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in links]
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to sources lead to their pages."""
    return LINK.sub(lambda link: f"{link[0].rstrip('/')}.md" if is_source(link[0]) else link[0], markdown)


def is_source(path: str) -> bool:
    """Whether a file is neither a page nor an image: it is shown as text."""
    return not path.endswith((".md", ".png", ".svg"))


def as_page(path: Path) -> str:
    """A page with the text of a file, the cells of a notebook or the names in a folder."""
    title = f"# `{path.relative_to(ROOT)}`"
    if path.is_dir():
        return "\n".join([title, "", *(f"- `{file.name}`" for file in sorted(path.iterdir()))])
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        return "\n\n".join([title, *(f"```python\n{code}\n```" if kind == "code" else code for kind, code in cells)])
    return f"{title}\n\n````{FENCE.get(path.suffix, 'text')}\n{text}\n````"
