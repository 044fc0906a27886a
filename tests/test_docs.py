"""What the pages and the commands' own examples show: command lines that parse, names that there are."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest

import vmi_inside
from vmi_inside.cli.app import COMMANDS, cli
from vmi_inside.guest import Guest

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
_PROMPT: Final = re.compile(r"^(?:[$#] )?(?:sudo )?(?=[\w-]*\b(?:vmi-inside|setpriv) )")


def _code(page: str) -> Iterator[str]:
    """The lines of its blocks of code, prompts taken away."""
    fenced = False
    for line in page.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield _PROMPT.sub("", line if fenced else line[4:])


def _commands(lines: Iterator[str]) -> Iterator[list[str]]:
    """The words of what is run of ours, as a shell splits them; what lasts over several lines is one."""
    for line in lines:
        if not re.match(r"(vmi-inside|setpriv) ", line):
            continue
        whole, words = line, _words(line)
        while words is None:
            whole += "\n" + next(lines)
            words = _words(whole)
        end = next((at for at, word in enumerate(words) if set(word) <= set("|<>;&")), len(words))
        yield words[words.index("vmi-inside") + 1 : end]


def _words(text: str) -> list[str] | None:
    """Words, and what stands between commands; None where a quotation goes on."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|<>;&")
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return None


def _inline(page: str) -> Iterator[list[str]]:
    """The words of commands in the text: what stands in brackets may be left out, an ellipsis is nobody's."""
    for text in re.findall(r"`vmi-inside ([^`]*)`", re.sub(r"```.*?```", "", page, flags=re.S)):
        words = shlex.split(re.sub(r"\[[^\]]*\]", "", text.replace("\n", " ")))
        yield [word for word in words if word != "..."]


def _told() -> Iterator[tuple[str, list[str]]]:
    for path in PAGES:
        page = path.read_text()
        for words in (*_commands(_code(page)), *_inline(page)):
            if words[:1] != ["COMMAND"]:
                yield path.name, words
    for name in COMMANDS:
        context = click.Context(cli)
        command = cli.get_command(context, name)
        assert command is not None
        subs = command.commands.values() if isinstance(command, click.Group) else ()
        for one in (command, *subs):
            for words in _commands(iter((one.epilog or "").replace("\b\n", "").replace("  vmi-", "vmi-").splitlines())):
                yield f"{name} --help", words


TOLD: Final = [(where, words) for where, words in _told() if words]


def parsed(words: list[str]) -> None:
    """Parse a command line and do nothing."""
    group: click.Group = cli
    context, rest = click.Context(cli), list(words)
    while True:
        name, command, rest = group.resolve_command(context, rest)
        assert command is not None
        if not isinstance(command, click.Group):
            command.make_context(name, rest, parent=context)
            return
        group, context = command, click.Context(command, parent=context)


def complaint(words: list[str]) -> str:
    """What is wrong with a command line; empty when nothing is, or only that the files which it names are not here."""
    try:
        parsed(words)
    except click.exceptions.Exit:  # --help
        return ""
    except click.MissingParameter as error:
        return "" if len(words) == 1 else error.format_message()  # a command that is spoken of
    except click.UsageError as error:
        return re.sub(r".*(does not exist|No such file).*", "", error.format_message(), flags=re.S)
    return ""


def test_there_are_many() -> None:
    assert len(TOLD) > 200
    assert {where for where, _ in TOLD} >= {"README.md", "control.md", "dumps.md", "gdb.md", "profiles.md"}


@pytest.mark.parametrize(("where", "words"), TOLD, ids=lambda told: told if isinstance(told, str) else " ".join(told))
def test_a_command_line_parses(where: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint(words) == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_names_of_the_library(page: Path) -> None:
    text = page.read_text()
    for name in set(re.findall(r"\bguest\.(\w+)\(", text)) - {"attach"}:
        assert hasattr(Guest, name), f"guest.{name}"
    for name in set(re.findall(r"\bvmi_inside\.([a-z_]+)", text)) - {"bridges"}:
        assert hasattr(vmi_inside, name), f"vmi_inside.{name}"
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_is_linked_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert os.path.exists(page.parent / link), link


@pytest.mark.parametrize(
    "words", ["ps web01 --no-such", "nonsense", "deny web01 nonsense", "ps web01 1 --sort", "cat a"]
)
def test_a_command_line_that_is_none(words: str) -> None:
    assert complaint(words.split())
