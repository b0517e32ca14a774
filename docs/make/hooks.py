"""What MkDocs does before it builds the site: pages made from the code, executed tutorials, and links.

The site has the repository's paths without ``docs/``, so a link in a page works in the repository and on the site.
"""

from __future__ import annotations

import argparse
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from recbole_onebp.cli import make_parser

ROOT = Path(__file__).parents[2]
LINKED = (
    "*.md",
    "LICENSE",
    "CITATION.cff",
    "benchmarks/README.md",
    "benchmarks/published.yaml",
    "benchmarks/results/**/*.*",
    "properties/**/*.yaml",
)
CELL_SECONDS = 300

# Tutorials run side by side, so each gets one thread; and none waits for a processor in a busy loop.
for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not lie in ``docs``."""
    for path in (path for pattern in LINKED for path in sorted(ROOT.glob(pattern))):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    scripts = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
    with ThreadPoolExecutor(2) as threads:
        for made in threads.map(executed, scripts):
            for name, content in made.items():
                files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between the repository's root and ``docs`` into links within the site."""
    deep = "/" in page.file.src_uri
    markdown = re.sub(r"(tutorials/\w+)\.py\)", r"\1.md)", markdown)  # the scripts, as the repository shows them
    return markdown.replace("](../docs/", "](../") if deep else re.sub(r"\]\((\.\./|docs/)", "](", markdown)


COMPLETION = """## Completion in the shell

[shtab](https://docs.iterative.ai/shtab/) (`pip install 'recbole-onebp[completion]'`) writes the script for bash, zsh or
tcsh. Run it again after an update:

```text
shtab --shell=bash recbole_onebp.cli.make_parser > ~/.local/share/bash-completion/completions/recbole-onebp
shtab --shell=zsh recbole_onebp.cli.make_parser > ~/.zfunc/_recbole-onebp    # a folder of $fpath
```"""


def commands() -> str:
    """The page of the commands, as their parsers describe them."""
    sub = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    parts = ["# Commands", "`recbole-onebp COMMAND`, or `python -m recbole_onebp COMMAND`:"]
    parts.append("\n".join(f"- [`{one.dest}`](#{one.dest}): {one.help}" for one in sub._choices_actions))
    for name, parser in sub.choices.items():
        parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, max_help_position=24, width=88)
        parts.append(f"## `{name}` {{#{name}}}\n\n```text\n{parser.format_help()}```")
    return "\n\n".join([*parts, COMPLETION])


def executed(script: Path) -> dict[str, str | bytes]:
    """A tutorial's page, its notebook and its pictures, by the names of their files.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = jupytext.read(script, fmt="py:percent")
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # without progress bars and logs
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    exporter = MarkdownExporter()
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)
    page, resources = exporter.from_notebook_node(notebook, {"unique_key": script.stem})
    page += f"\n---\nThis page as a [notebook]({script.stem}.ipynb) and as a [script]({script.name}).\n"
    return {f"{script.stem}.md": page, f"{script.stem}.ipynb": nbformat.writes(notebook), **resources["outputs"]}
