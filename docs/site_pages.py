"""Parts of the site that are made from the code and from files elsewhere in the repository (a hook of MkDocs).

Links in the Markdown sources lead to files of the repository, so that they work wherever it is browsed. Here they are
rewritten: to where the site has the file, or else to the repository on the web.
"""

from __future__ import annotations

import argparse
import posixpath
import re
from pathlib import Path
from typing import Any

from FewShotSegLib.cli.arguments import parser
from FewShotSegLib.data.recipe import describe
from FewShotSegLib.inference.support import SupportRecipe
from FewShotSegLib.methods import method

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/FewShotSeg/SlicerFewShotSeg/blob/main"
PAGES = {"benchmarks.md": "Testing/BENCHMARKS.md", "changes.md": "CHANGELOG.md"}  # by their place on the site
PICTURES = {
    f"images/{path.name}": f"Resources/Screenshots/{path.name}" for path in ROOT.glob("Resources/Screenshots/*.png")
}
PICTURES |= {f"images/{path.name}": f"Testing/{path.name}" for path in ROOT.glob("Testing/*.png")}
SITE_OF = {source: name for name, source in (PAGES | PICTURES).items()}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and the pictures."""
    from mkdocs.structure.files import File

    pages = {name: (ROOT / source).read_text(encoding="utf-8") for name, source in PAGES.items()}
    pages["reference/command-line.md"] = command_line_reference()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for name, source in PICTURES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in the tables of options, and rewrite links to files that the site has elsewhere or has not."""
    name = page.file.src_uri
    return links_on_site(with_options(markdown), name) if name.endswith(".md") else markdown


# --------------------------------------------------------------------------------------------------------------- links


def links_on_site(text: str, name: str) -> str:
    """Return the Markdown of the page `name` with its relative links as the site needs them."""
    source = PAGES.get(name, f"docs/{name}")
    return re.sub(
        r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", lambda link: f"]({_on_site(link[1], source, name)}{link[2] or ''})", text
    )


def _on_site(link: str, source: str, name: str) -> str:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if not (ROOT / target).exists():  # not a link to a file
        return link
    if target in SITE_OF or target.startswith("docs/"):
        return posixpath.relpath(SITE_OF.get(target, target.removeprefix("docs/")), posixpath.dirname(name) or ".")
    return f"{REPOSITORY}/{target}"


# ------------------------------------------------------------------------------------------------------------- recipes


def recipe_reference() -> str:
    """Return the page with every option of every method: name, default, what is allowed, what it does."""
    return with_options((ROOT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8"))


def with_options(text: str) -> str:
    """Return Markdown with a table in each place for options, and without what is for the repository only."""
    text = re.sub(r"<!-- repository only -->\n.*?<!-- end -->\n\n?", "", text, flags=re.S)
    return re.sub(r"<!-- options: (\w+) -->\n.*?<!-- end -->", lambda place: _options(place[1]), text, flags=re.S)


def _options(of: str) -> str:
    if of == "support":
        return _table(describe(SupportRecipe))
    return f"{method(of).LABEL}.\n\n{_table(describe(method(of).Recipe))}"


def _table(options: list[dict[str, Any]], prefix: str = "") -> str:
    rows = "\n".join(_rows(options, prefix))
    return f"| option | default | allowed | what it does |\n|---|---|---|---|\n{rows}"


def _rows(options: list[dict[str, Any]], prefix: str) -> list[str]:
    rows = []
    for one in options:
        if one["kind"] == "recipe":
            rows += _rows(one["options"], f"{prefix}{one['name']}.")
            continue
        cells = (f"`{prefix}{one['name']}`", f"`{_value(one['default'])}`", _allowed(one), one["help"])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_value, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(one: dict[str, Any]) -> str:
    if one["choices"]:
        text = ", ".join(f"`{_value(choice)}`" for choice in one["choices"])
    elif one["kind"] == "bool":
        text = "`true`, `false`"
    else:
        low, high = one["min"], one["max"]
        text = one["kind"] if low is None else f"{one['kind']} from {low}" + ("" if high is None else f" to {high}")
    return f"{text} or `none`" if one["optional"] else text


# -------------------------------------------------------------------------------------------------------- command line


def command_line_reference() -> str:
    """Return a page with the help of every command."""
    parts = [
        "# Command line",
        "Exit codes: 0 success, 1 internal error, 2 invalid input, 130 cancelled. Every command accepts `--json` for "
        "machine-readable output. This page is generated from the code.",
    ]
    for words, command in _commands(parser()):
        parts += [f"## fewshotseg {words}", f"```text\n{command.format_help().strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _commands(top: argparse.ArgumentParser, words: str = "") -> list[tuple[str, argparse.ArgumentParser]]:
    groups = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    found = []
    for name, command in (pair for group in groups for pair in group.choices.items()):
        path = f"{words} {name}".strip()
        below = _commands(command, path)
        found += below or [(path, command)]
    return found
