"""What mkdocs asks for when it builds the site (mkdocs.yml): pages made of what they repeat.

The start page is README.md, the command reference is made of the parser, the API reference names
what mkdocstrings then reads; links that leave docs/ become links of the site, or plain words.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
#: Files outside docs/ that are pages of the site.
_REPEATED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
#: Page of the API reference: heading -> objects, and which of their members, all where not said.
_API: dict[str, dict[str, tuple[str, ...] | None]] = {
    "Writing texts": {
        "draftrec.jobs.knowledge.generator.Generator": ("from_pretrained", "generate", "stream"),
        "draftrec.jobs.knowledge.writing.Texts": None,
        "draftrec.jobs.knowledge.writing.Text": None,
    },
    "Recommending": {
        "draftrec.jobs.recommend.recommender.ItemRecommender": ("from_pretrained", "recommend"),
        "draftrec.jobs.recommend.catalogue.Query": None,
        "draftrec.jobs.recommend.catalogue.Recommendation": None,
    },
    "Pools": {"draftrec.pool.store.Pool": ("load", "save", "add", "merge", "prune")},
    "Inside transformers": {"draftrec.integrations.transformers": None},
    "Inside vLLM": {"draftrec.integrations.vllm": ("engine_args", "write_groups")},
    "Errors": {"draftrec.errors": None},
}  # fmt: skip
#: Settings classes of the API reference, each with what its settings are given to.
_SETTINGS = {
    "Settings of texts, for `Generator`": (
        "ModelConfig", "AcceptConfig", "ControlsConfig", "DraftConfig", "BatchConfig",
        "StructureConfig",
    ),
    "Settings of recommendations, for `ItemRecommender`": ("RecommendConfig",),
}  # fmt: skip


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {site: (ROOT / name).read_text("utf-8") for name, site in _REPEATED.items()}
    pages |= {"commands.md": commands(), "api.md": api()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as the site has them."""
    source = page.file.src_uri
    where = next((name for name, site in _REPEATED.items() if site == source), f"docs/{source}")
    return relinked(markdown, where, source)


def relinked(markdown: str, where: str, source: str) -> str:
    """`markdown`, a file of the repository at `where`, with the links of the site's page "
    "`source`."""

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match["words"], match["target"], match["anchor"] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(where), target))
        here = posixpath.dirname(source) or "."
        if path in _REPEATED:
            return f"[{words}]({posixpath.relpath(_REPEATED[path], here)}{anchor})"
        if path.startswith("docs/"):
            return f"[{words}]({posixpath.relpath(path.removeprefix('docs/'), here)}{anchor})"
        return words  # a file of the repository that is no page

    pattern = r"(?<!!)\[(?P<words>[^\]]*)\]\((?!https?:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)"
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [_cells(re.sub(pattern, link, part)) for part in parts[::2]]
    parts[1::2] = [_folded(part) if part.startswith("```bash") else part for part in parts[1::2]]
    text = "".join(parts)
    if source == "index.md":  # pictures stand in HTML, which mkdocs leaves as it is
        text = re.sub(r'(srcset|src)="docs/', r'\1="', text)
    return text


def _folded(block: str, width: int = 80) -> str:
    """A block of commands, those too long for the page continued on further lines."""
    lines = []
    for line in block.split("\n"):
        # Only between options and steps; a comment or a quotation is left as it is.
        pieces = [line] if re.search("[#'\\\\]", line) else re.split(r" (?=--[a-z]|&& )", line)
        for piece in pieces[1:]:
            if len(pieces[0]) + len(piece) + 3 > width:
                lines.append(f"{pieces[0]} \\")
                pieces[0] = f"    {piece}"
            else:
                pieces[0] += f" {piece}"
        lines.append(pieces[0])
    return "\n".join(lines)


def _cells(markdown: str) -> str:
    """Tables whose code has its `|` unescaped: GitHub wants the backslash, the site would show "
    "it."""
    row = re.compile(r"^\|.*", re.MULTILINE)
    code = re.compile(r"`[^`]*`")
    return row.sub(lambda m: code.sub(lambda c: c[0].replace("\\|", "|"), m[0]), markdown)


def api() -> str:
    """The API reference, for mkdocstrings to fill in."""
    parts = [
        "# API\n\nWhat other programs may rely on. Everything else may change between versions. "
        "`from draftrec import Generator, ItemRecommender, Query` has most of it.\n"
    ]
    for title, names in _API.items():
        parts += [
            f"## {title}\n",
            *(_object(name, members) for name, members in names.items()),
        ]
    for title, classes in _SETTINGS.items():
        parts += [f"## {title}\n", "| setting | default | |\n| --- | --- | --- |"]
        parts[-1] += "".join("\n" + line for name in classes for line in _knobs(name)) + "\n"
    return "\n".join(parts)


def _knobs(name: str) -> Iterator[str]:
    """A line of a table for each setting of a class."""
    from dataclasses import MISSING

    from draftrec import config
    from draftrec.knobs import knobs

    for setting, knob in knobs(getattr(config, name)).items():
        default = f"`{knob.default!r}`"
        if knob.default is MISSING:
            default = "required"
        elif knob.default is None or knob.default == ():
            default = knob.unset or ""
        choices = f" One of {', '.join(f'`{c!r}`' for c in knob.choices)}." if knob.choices else ""
        yield _line(
            [f"`{setting}`", default, _plain(knob.does).removesuffix(" Required.") + choices]
        )


def _object(name: str, members: tuple[str, ...] | None) -> str:
    """What mkdocstrings reads of an object; a module is told by its members alone."""
    options: dict[str, Any] = {"heading_level": 3}
    if members is not None:
        options["members"] = list(members)
    if "from_pretrained" in (members or ()):  # by which they are made
        options["merge_init_into_class"] = False
    return f"::: {name}\n    options: {json.dumps(options)}\n"


def commands() -> str:
    """The command reference, of the parser that the command line itself uses."""
    import typer.main

    from draftrec.cli.main import _app

    root: Any = typer.main.get_command(_app([]))
    parts = [
        "# Commands\n\nWhat `draftrec COMMAND --help` says, made of the same options. Settings of "
        "several "
        "values (`-k 1 3 5`) take them one after another.\n"
    ]
    for name, command in sorted(root.commands.items()):
        parts.append(f"## draftrec {name}\n")
        below = getattr(command, "commands", None)
        if below is None:
            parts.append(_command(f"draftrec {name}", command))
            continue
        parts.append(f"{_plain(command.help)}\n")
        for word, part in below.items():
            parts += [f"### draftrec {name} {word}\n", _command(f"draftrec {name} {word}", part)]
    return "\n".join(parts)


def _command(called: str, command: Any) -> str:
    params = [p for p in command.params if not p.hidden]
    arguments = [p for p in params if p.param_type_name == "argument"]
    usage = " ".join([called, *(_value(p) for p in arguments), "[OPTIONS]"])
    parts = [f"{_plain(command.help)}\n\n```text\n{usage}\n```\n"]
    panels: dict[str, list[Any]] = {}
    for param in params:
        panels.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(param)
    for panel, rows in panels.items():
        parts.append(f"**{panel}**\n\n| option | value | default | |\n| --- | --- | --- | --- |")
        parts[-1] += "".join("\n" + _row(param) for param in rows) + "\n"
    return "\n".join(parts)


def _row(param: Any) -> str:
    """One line of a table: names, value, default, help."""
    is_argument = param.param_type_name == "argument"
    names = [_value(param)] if is_argument else [*param.opts, *param.secondary_opts]
    value = "" if is_argument or param.is_flag else f"`{_value(param)}`"
    default = param.default
    bare = default is None or default in ("", (), []) or isinstance(default, bool)
    told = "required" if param.required else "" if bare or callable(default) else f"`{default}`"
    # Where the help says what leaving an option out means, its place is the column of defaults.
    does, _, unset = _plain(param.help).removesuffix(" Required.").partition(" [default: ")
    return _line([", ".join(f"`{n}`" for n in names), value, told or unset.rstrip("]."), does])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _value(param: Any) -> str:
    """What a parameter takes: its choices, its metavar, or its type."""
    annotation = getattr(getattr(param, "type_descriptor", None), "annotation", None)
    if choices := [c for c in get_args(annotation) if isinstance(c, str)]:
        return "|".join(choices)
    return param.metavar or str(getattr(annotation, "__name__", param.name)).upper()


def _plain(text: str | None) -> str:
    """Help without the marks of the terminal, safe in a page."""
    text = re.sub(r"\\\[", "[", text or "")
    return re.sub(r"(?<!`)<([\w-]+)>", r"&lt;\1&gt;", text).strip()
