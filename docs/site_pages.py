"""Pages of the site that are made from the code and from files elsewhere in the repository (a hook of MkDocs)."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from FewShotSegLib.cli.arguments import parser
from FewShotSegLib.data.recipe import describe
from FewShotSegLib.inference.support import SupportRecipe
from FewShotSegLib.methods import METHODS, method

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {path.name: path for path in (ROOT / "Resources" / "Screenshots").glob("*.png")}
PICTURES["support.png"] = ROOT / "Testing" / "support.png"
REPOSITORY = "https://github.com/FewShotSeg/SlicerFewShotSeg/blob/main"


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and the pictures."""
    from mkdocs.structure.files import File

    pages = {
        "reference/recipes.md": recipe_reference(),
        "reference/command-line.md": command_line_reference(),
        "benchmarks.md": (ROOT / "Testing" / "BENCHMARKS.md").read_text(encoding="utf-8"),
        "changes.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=_links_from(text, name)))
    for name, path in PICTURES.items():
        files.append(File.generated(config, f"images/{name}", abs_src_path=str(path)))
    return files


def _links_from(text: str, page: str) -> str:
    """Links to files that are not on the site go to the repository, pictures to where the site has them."""
    up = "../" * page.count("/")
    text = re.sub(r"\]\(support\.png\)", f"]({up}images/support.png)", text)
    text = re.sub(r"\]\((benchmarks/[^)]*)\)", rf"]({REPOSITORY}/Testing/\1)", text)
    return re.sub(r"\]\((?:\.\./)+(Resources/[^)]*)\)", rf"]({REPOSITORY}/\1)", text)


# ------------------------------------------------------------------------------------------------------------- recipes


def recipe_reference() -> str:
    """Return a page with every option of every method: name, default, what is allowed, what it does."""
    parts = [
        "# Recipe options",
        "Options that change how a method learns. On the command line: `--recipe rank=8 steps=800`, or a "
        'file in JSON; in Python: `adapt(..., recipe={"rank": 8})`. Options with a dot belong to a part of the '
        "recipe. This page is made from the code.",
    ]
    for name in METHODS:
        chosen = method(name)
        parts += [f"## {name}", f"{chosen.LABEL}.", _table(describe(chosen.Recipe))]
    parts += [
        "## Support sets",
        "Options of `--support-recipe`, for segmenting after annotated slices without training.",
        _table(describe(SupportRecipe)),
    ]
    return "\n\n".join(parts) + "\n"


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
        "Exit codes: 0 done, 1 a defect of this program, 2 something to be changed by you, 130 cancelled. Every "
        "command takes `--json` for programs. This page is made from the code.",
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
