"""Run the code of README.md and docs/, and check their links, commands and tables."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from torchadder.cli import main
from torchadder.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(?:\w+=\S* )*torchadder (.+)$", flags=re.MULTILINE)
WHOLE = {"docs/your-own-data.md"}  # pages whose shell commands run, too


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


WITH_PYTHON = [page for page in PAGES if "```python" in text_of(page)]


@pytest.mark.filterwarnings("ignore:Please use the new API settings:UserWarning")  # torch's own
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_code_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch, capsys, one_thread):
    text = text_of(page)
    monkeypatch.chdir(tmp_path)
    names, printed = {}, False
    for block in BLOCK.finditer(text):
        language, body = block.groups()
        if language == "python":
            capsys.readouterr()
            line = text[: block.start()].count("\n") + 1
            exec(compile("\n" * line + body, page, "exec"), names)
            printed = True
        elif language == "sh" and page in WHOLE:
            for command in COMMAND.findall(body):
                assert main(shlex.split(command)) == 0, capsys.readouterr().err
        elif not language and printed:  # the output of the block above
            assert capsys.readouterr().out.strip() == body.strip()
        printed = language == "python"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in LINK.findall(text_of(page)):
        if re.match(r"https?:", target):
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if heading:
            assert heading in headings(file), target


def headings(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def commands():
    for page in PAGES:
        for language, body in BLOCK.findall(text_of(page)):
            if language in ("", "sh"):
                yield from ((page, command) for command in COMMAND.findall(body.replace("\\\n", " ")))


@pytest.mark.parametrize(("page", "command"), [*commands()])
def test_commands_exist_with_their_options(page, command):
    verb, *words = re.split(r"  |#", command)[0].split()
    found = get_command(app).commands
    assert verb in found
    chosen = found[verb]
    while hasattr(chosen, "commands") and words and words[0] in chosen.commands:
        chosen = chosen.commands[words.pop(0)]
    options = {name for parameter in chosen.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.strip("[]") for word in words if re.match(r"\[?--", word)} <= options


def test_the_readme_shows_code_early_and_stays_short():
    lines = text_of("README.md").splitlines()
    assert lines.index("```python") < 20
    assert len(lines) <= 125
    assert set(re.findall(r"\]\((docs/[\w-]+\.md)\)", text_of("README.md"))) == {
        p for p in PAGES if p.startswith("docs/")
    }
