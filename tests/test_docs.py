"""README and docs: every link leads somewhere, every command has the flags that it is given."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mjx_qflex import flags

PAGES = [ROOT / "README.md", ROOT / "WORKSPACE.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python -m mjx_qflex\.(\w+)([^`\n#&|]*)")
MADE_BY_THE_READER = ("my_policy", "leg_stand")


def documented() -> list[tuple[str, str]]:
    """Returns commands and their arguments; after three spaces a comment begins."""
    texts = (page.read_text().replace("\\\n", " ") for page in PAGES)
    found = {found for text in texts for found in COMMAND.findall(text)}
    return sorted({(name, arguments.strip().split("   ")[0]) for name, arguments in found})


@functools.cache
def flags_of(name: str) -> set[str]:
    command = [sys.executable, "-m", f"mjx_qflex.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--[\w-]+", done.stdout))


@pytest.mark.parametrize(("name", "arguments"), documented())
def test_a_documented_command_has_these_flags(name, arguments):
    arguments = shlex.split(arguments)
    for flag in (argument.partition("=")[0] for argument in arguments):
        assert not flag.startswith("--") or flag in flags_of(name)
    made = any(argument.endswith(MADE_BY_THE_READER) for argument in arguments)
    if name == "train" and arguments and "--help" not in arguments and not made:
        flags.resolve(flags.make_parser().parse(arguments))


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if not target.startswith("https://"):
            there = page.parent / path if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
