"""What mkdocs asks for when it builds the site (mkdocs.yml): pages made of what they repeat.

The start page is README.md, the command reference is made of the parser, the API reference names
what mkdocstrings then reads; links that leave docs/ become links of the site, or plain words.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
#: Files outside docs/ that are pages of the site.
_REPEATED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
#: Page of the API reference: heading -> objects.
_API = {
    "Writing texts": ("draftrec.jobs.knowledge.generator.Generator", "draftrec.core.Request",
                      "draftrec.core.Generation"),
    "Settings": ("draftrec.config.generate", "draftrec.config.recommend"),
    "Inside transformers": ("draftrec.integrations.transformers",),
    "Inside vLLM": ("draftrec.integrations.vllm",),
    "Pools": ("draftrec.pool.store.Pool",),
    "Recommending": ("draftrec.engine.beams.loop",),
    "Errors": ("draftrec.errors",),
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
    text = "".join(parts)
    if source == "index.md":  # pictures stand in HTML, which mkdocs leaves as it is
        text = re.sub(r'(srcset|src)="docs/', r'\1="', text)
    return text


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
        "`draftrec.Generator` is the first class below.\n"
    ]
    for title, names in _API.items():
        parts += [
            f"## {title}\n",
            *(f"::: {name}\n    options: {{heading_level: 3}}\n" for name in names),
        ]
    return "\n".join(parts)


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
    cells = [", ".join(f"`{n}`" for n in names), value, told, _plain(param.help)]
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
