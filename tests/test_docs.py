"""The pages of docs/ that hold Python run, in order, and print what they say that they print."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
PAGES = ["convert.md", "engine.md"]


@pytest.mark.filterwarnings("ignore:Please use the new API settings:UserWarning")  # torch's own
@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page, tmp_path, monkeypatch, capsys, one_thread):
    text = (DOCS / page).read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCK.finditer(text):
        language, body = block.groups()
        if language == "python":
            capsys.readouterr()
            line = text[: block.start()].count("\n") + 1
            exec(compile("\n" * line + body, page, "exec"), names)
        elif not language:  # what is in another one is for a terminal
            assert capsys.readouterr().out.strip() == body.strip()


def test_every_page_with_python_is_run():
    assert sorted(path.name for path in DOCS.glob("*.md") if "```python" in path.read_text(encoding="utf-8")) == PAGES
