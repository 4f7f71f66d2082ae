"""The commands of the README and its guides are ones that our parsers take. They are parsed as they stand, not run."""

import argparse
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

from train.fit import FitArgs
from tune.search import SearchArgs

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/search.md", "docs/training.md", "docs/serving.md")
README = "\n".join((ROOT / page).read_text() for page in PAGES)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
BLOCKS = [block for language, block in FENCED.findall(README) if not language]
SPANS = re.findall(r"`([^`\n]+)`", FENCED.sub("", README))
LINES = [line for block in BLOCKS for line in block.splitlines()] + SPANS
PYTHON = re.compile(r'(?:\.venv/bin/python |ARGS=")((?:-m )?[\w./]+ .*?)(?:"|    |  +#|$)')  # up to a comment
COMMANDS = sorted({found.replace("[", "").replace("]", "") for line in LINES for found in PYTHON.findall(line)})
ELSEWHERE = {"serve/client.py": "serve/client_command.py", "serve.container": "serve/container/__main__.py"}


class Parsed(BaseException):
    """Ends a command where SystemExit would, too; its argument is what the parser made of the flags."""


@pytest.fixture
def words_of(tmp_path: Path) -> Callable[[str], list[str]]:
    """`words_of(command)`: a script and its flags; `tmp_path` has the serve/config.yaml that some of them name."""
    (tmp_path / "serve").symlink_to(ROOT / "serve")

    def split(command: str) -> list[str]:
        script, *flags = shlex.split(command.removeprefix("-m "))
        return [ELSEWHERE.get(script, script), *flags]

    return split


def test_there_are_commands_to_try() -> None:
    assert len(COMMANDS) > 30
    assert {command.split()[0] for command in COMMANDS} > {"tune/search.py", "serve/start.py", "benchmarks/chaos.py"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_parsed(
    command: str,
    words_of: Callable[[str], list[str]],
    in_process: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script, *flags = words_of(command)
    owner, name = (argparse.ArgumentParser, "parse_args") if "container" in script else (tyro, "cli")
    parse = getattr(owner, name)

    def only_parse(*args: object, **options: object) -> None:
        raise Parsed(parse(*args, **options))

    monkeypatch.setattr(owner, name, only_parse)
    try:
        told = in_process(script, *flags)
    except Parsed as parsed:
        made = parsed.args[0]
        if isinstance(made, SearchArgs) and not made.resume:
            made.resolve()
        if isinstance(made, FitArgs) and not made.recipe_file:
            made.resolve()
    else:
        pytest.fail(f"{command}: {told.err}")


def test_every_flag_that_is_named_exists(words_of: Callable[[str], list[str]], in_process: Callable[..., Any]) -> None:
    starts = [words_of(command)[:2] for command in [*COMMANDS, "benchmarks/load.py"]]
    helped = {tuple(words) if words[-1].islower() and words[-1].isalpha() else (words[0],) for words in starts}
    known = set()
    for words in helped:
        told = in_process(*words, "--help")
        assert told.code == 0, words
        known |= set(re.findall(r"--[a-z][\w.-]*", told.out))
    named = {flag for span in SPANS for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", span)}
    assert len(named) > 30
    assert named - known == set()


def test_every_verb_is_in_the_makefile() -> None:
    verbs = {found for line in LINES for found in re.findall(r"^make ([a-z-]+)", line)}
    assert {"demo", "test", "test-faults", "check", "submit"} <= verbs
    assert verbs <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
