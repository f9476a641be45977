"""Tables on a terminal, through a pipe, and as JSON."""

import json
import sys

import pytest

from svp.cli import run
from svp.cli.output import fitted_table


@pytest.mark.parametrize("columns", [80, 100])
def test_strategies_fit_a_terminal_and_are_one_line_each_in_a_pipe(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(["strategies", "list", "--json"]) == 0
    names = [one["name"] for one in json.loads(capsys.readouterr().out)["strategies"]]
    assert run(["strategies", "list"]) == 0
    piped = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in piped[1:]] == names
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(["strategies", "list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= columns
    assert [line.split()[0] for line in shown[1:] if not line.startswith(" ")] == names


def test_the_last_column_is_wrapped_and_loses_no_word(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = [f"word{number}" for number in range(40)]
    text = fitted_table(["name", "what"], [["a", " ".join(words)], ["b", ""]])
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.split()[3:-1] == words
    assert text.splitlines()[-1] == "b"
