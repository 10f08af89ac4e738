"""Pages of the site that lie at the top of the repository, where a code host shows them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
TOP = ("CONTRIBUTING.md", "RESULTS.md", "CHANGELOG.md")


def on_files(files: Files, config: Any) -> Files:
    for name in TOP:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links between the two folders, as they are in the site, where there is one."""
    if page.file.src_uri in TOP:
        return markdown.replace("](docs/", "](")
    return re.sub(rf"\]\(\.\./({'|'.join(map(re.escape, TOP))})", r"](\1", markdown)
