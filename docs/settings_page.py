"""Writes ``docs/settings.md``, the page of every setting, from the declarations.

Owns: the page's words and layout. Run it after changing a setting; a test fails
while the page is out of date.
Leaves: what the page says of a setting to the setting.
"""

import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pulsar.apps
from pulsar.config import Setting, settings_of
from pulsar.config.setting import literal

PAGE = Path(__file__).with_name("settings.md")

HEAD = """\
# Settings

<!-- Written by docs/settings_page.py from the declarations: change those, not this page. -->

Every setting can be given in five ways. Where several are used, the first of these wins:

1. a flag on the command line: `--keep-alive 10`;
2. an environment variable: `PULSAR_KEEP_ALIVE=10`;
3. a key in the TOML file that `-c` or `PULSAR_CONFIG` names: `keep_alive = 10`, at the top of the
   file or in its `[pulsar]` table, with dashes or underscores;
4. a keyword in the program: `SocketServer(handler, keep_alive=10)`;
5. its default.

No file is read unless one is named. `--print-config` shows every value and where it came from, as
a file that `-c` accepts; `--check` says whether the settings and the application can be used.

An unknown name or a bad value is refused, wherever it comes from, with the nearest right name. The
exception is an environment variable that starts with `PULSAR_` and belongs to no setting: it may be
another program's, so it is only reported. An empty environment variable counts as one that is not
there.

A setting that takes several values has its flag repeated, or its values separated by commas; in a
file and in a program it is a list.

What it takes to change a setting of a running server is one of three things: **live**, a reload
is enough; **new workers**, it holds for the workers that a reload starts, and a server of one
process must be restarted; **restart**.
"""


def render() -> str:
    """Return the text of the page."""
    lines = [HEAD]
    section = None
    for setting in settings_of(_applications()).values():
        if setting.section != section:
            section = setting.section
            lines.append(f"## {section}\n")
        lines.append(_entry(setting))
    return "\n".join(lines)


def _applications() -> list[str]:
    """Declare the settings of the applications that come with pulsar; return their names."""
    packages = [found.name for found in pkgutil.iter_modules(pulsar.apps.__path__) if found.ispkg]
    declaring = []
    for name in packages:
        module = f"pulsar.apps.{name}.settings"
        if importlib.util.find_spec(module):
            importlib.import_module(module)
            declaring.append(name)
    return declaring


def _entry(setting: type[Setting]) -> str:
    rows = [
        ("Flag", _flags(setting)),
        ("Environment", f"`{setting.variable}`"),
        ("File", f"`{setting.name}`" if setting.in_file else "no"),
        ("Default", "unset" if setting.default is None else f"`{literal(setting.default)}`"),
        ("Accepts", ", ".join(f"`{choice}`" for choice in setting.choices)),
        ("Change", setting.change),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows if value)
    return f"### {setting.name}\n\n{_prose(setting.desc)}\n\n| | |\n|---|---|\n{table}\n"


def _flags(setting: type[Setting]) -> str:
    shown = [f"`{flag}`" for flag in setting.flags]
    if setting.is_flag and setting.in_file:
        shown.append(f"`--no-{setting.flags[-1][2:]}`")
    return ", ".join(shown) or "none"


def _prose(text: str) -> str:
    """Keep Markdown from reading marks in a plain paragraph."""
    for mark in "\\`*_[]<>#":
        text = text.replace(mark, f"\\{mark}")
    return text


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
