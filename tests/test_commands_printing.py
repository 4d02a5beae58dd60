"""Tables that fit, next commands that work when pasted, and progress that says what it is about."""

import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from cluster.process.typed import ADDRESS, PLACED, STORE, give, typed
from cluster.s3.store import Store
from cluster.session import store_environment
from orchestrator.commands import terminal
from orchestrator.commands.app import app
from orchestrator.commands.printing.progress import (
    Tenths,
    counting_progress,
    push_progress,
    training_progress,
)
from orchestrator.commands.printing.tables import layout, table
from orchestrator.commands.terminal import next_steps
from orchestrator.runs.record import RunStatus
from tests.example_runs import write_run
from tests.test_cli import commands, run

RUN = "movielens-100k-fm-20261122-101500-a1b2"
COLUMNS = ("run", "state", "metric", "value", "seconds", "created")
ROWS = [
    (RUN, "finished", "rmse", 0.9312, 1234567, "2026-11-22T10:15:00+00:00"),
    ("digits-cnn-20261122-101500-ffff", "running", "accuracy", None, None, "2026-11-22T10:15:00+00:00"),
]


@pytest.fixture
def no_options() -> Any:
    """What one test's command line was given is not the next one's."""
    yield
    give(ADDRESS, None)
    give(STORE, None)


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both consoles write to what pytest reads, as into a pipe."""
    monkeypatch.setattr(terminal, "out", terminal._Terminal(stderr=False, width=200))
    monkeypatch.setattr(terminal, "err", terminal._Terminal(stderr=True, width=200))


# ----------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("width", range(40, 131, 5))
def test_a_table_never_cuts_or_folds_a_name_or_a_number(width: int) -> None:
    found = layout(COLUMNS, ROWS, width=width, least=("created", "seconds", "metric"))
    assert all(len(line) <= width for line in (found.header, *found.lines))
    assert len(found.lines) == len(ROWS)
    shown = [name for name in COLUMNS if name not in found.left_out]
    assert found.header.split() == shown
    assert found.lines[0].split()[0] == RUN
    whole = {"state": "finished", "metric": "rmse", "value": "0.9312", "seconds": "1,234,567", "created": ROWS[0][5]}
    assert found.lines[0].split()[1:] == [whole[name] for name in shown[1:]]


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (None, []),
        (200, []),
        (104, []),
        (103, ["created"]),
        (70, ["seconds", "created"]),
        (60, ["metric", "seconds", "created"]),
        (50, ["metric", "value", "seconds", "created"]),
        (40, ["state", "metric", "value", "seconds", "created"]),
        (20, ["state", "metric", "value", "seconds", "created"]),
    ],
)
def test_the_least_important_columns_go_first_and_then_those_on_the_right(
    width: int | None, left_out: list[str]
) -> None:
    found = layout(COLUMNS, ROWS, width=width, least=("created", "seconds", "metric"))
    assert found.left_out == left_out
    assert found.whole_width == len(layout(COLUMNS, ROWS, width=None).lines[0])


def test_a_column_of_text_is_folded_between_words_and_gets_what_the_others_leave() -> None:
    rows = [("digits", "a picture of eight by eight pixels that somebody wrote in the year 2011", 1797)]
    found = layout(("dataset", "what", "rows"), rows, width=50, prose=["what"])
    assert found == (
        "dataset  what                                 rows",
        [
            "digits   a picture of eight by eight pixels  1,797",
            "         that somebody wrote in the year",
            "         2011",
        ],
        [],
        len("dataset") + 2 + 20 + 2 + len("1,797"),
    )


def test_a_long_word_is_not_broken_but_its_column_left_out() -> None:
    rows = [("digits", "see /a/very/long/path/to/some/folder/that/has/no/end")]
    assert layout(("dataset", "source"), rows, width=40, prose=["source"]).left_out == ["source"]
    assert layout(("dataset", "source"), rows, width=60, prose=["source"]).lines == [
        "digits   see",
        "         /a/very/long/path/to/some/folder/that/has/no/end",
    ]


def test_the_digits_of_counts_are_grouped_and_those_of_names_are_not() -> None:
    rows = [(2026, 12000, 65535)]
    found = layout(("seed", "rows", "port"), rows, width=None, ids=["seed", "port"])
    assert found.lines == ["2026  12,000  65535"]
    assert found.header == "seed    rows   port"


def test_wide_letters_count_twice() -> None:
    found = layout(("name", "n"), [("日本", 1), ("ab", 2)], width=None)
    assert found.lines == ["日本  1", "ab    2"]


def test_what_is_left_out_is_named_with_the_way_to_see_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = terminal._Terminal(stderr=False, width=70)
    monkeypatch.setattr(narrow, "_force_terminal", True)
    monkeypatch.setattr(terminal, "out", narrow)
    monkeypatch.setattr(terminal, "err", terminal._Terminal(stderr=True, width=200))
    table(COLUMNS, ROWS, least=("created", "seconds", "metric"))
    assert capsys.readouterr().err == (
        "left out: seconds, created. Shown with --json, or on a terminal of 104 columns.\n"
    )


def test_a_pipe_gets_every_column_of_any_width(piped: None, capsys: pytest.CaptureFixture[str]) -> None:
    table(("a", "b"), [("x" * 300, 1)])
    found = capsys.readouterr()
    assert found.out == f"a{' ' * 301}b\n{'x' * 300}  1\n"
    assert found.err == ""


def on_terminal(words: Sequence[str], *, columns: int, **environment: str) -> str:
    """Run a command on a real terminal of so many columns, and return what it shows, without colours."""
    ours, its = pty.openpty()
    ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    rest = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words],
        stdout=its,
        stderr=its,
        cwd=Path(__file__).parents[1],
        env=rest | {"TERM": "xterm", **environment},
    )
    os.close(its)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # how a terminal ends whose other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n")


@pytest.mark.store
@pytest.mark.parametrize("columns", [70])
def test_every_list_keeps_its_names_whole_on_a_narrow_terminal(store: Store, columns: int) -> None:
    place = store_environment(store.settings)
    write_run(store, run="a-run-with-a-name-of-some-length-20261122-a1b2", kind="table")
    run("data", "push", "sklearn:digits", "--name", "digits-of-a-name-that-is-rather-long", **place)
    lists = {
        ("runs",): "a-run-with-a-name-of-some-length-20261122-a1b2",
        ("data", "ls"): "digits-of-a-name-that-is-rather-long",
        ("data", "show", "digits-of-a-name-that-is-rather-long"): "train",
        ("recipes",): "movielens-fm",
        ("sweep", "digits-techniques", "--dry-run"): "8 arms × 3 seeds = 24 trainings",
    }
    for words, name in lists.items():
        shown = on_terminal(words, columns=columns, **place)
        assert name in shown, words
        assert "…" not in shown, words
    assert "left out: " in on_terminal(("runs",), columns=columns, **place)


# ------------------------------------------------------------------------------------------------------------- next


def test_the_table_of_options_is_that_of_the_commands() -> None:
    root = typer.main.get_command(app)
    found = {}
    for words in commands():
        options = {name for p in command_of(root, words).params if not getattr(p, "is_flag", False) for name in p.opts}
        if has := tuple(name for name in (ADDRESS, STORE) if name in options):
            found[" ".join(words)] = has
    assert found == dict(PLACED)


def command_of(root: Any, words: Sequence[str]) -> Any:
    for word in words:
        root = root.commands[word]
    return root


def parse(line: str) -> None:
    """Read a line as the shell and our command line would, and run nothing; a mistake in it is raised."""
    program, *words = shlex.split(line)
    assert program == "orchestrator"
    command, context = typer.main.get_command(app), None
    while words:
        context = command.make_context(command.name, words, parent=context)
        words = [*context._protected_args, *context.args] if hasattr(command, "commands") else []
        if not words:
            return
        command, words = command.commands[words[0]], words[1:]
        if not words and not hasattr(command, "commands"):
            command.make_context(command.name, words, parent=context)


def test_a_command_is_quoted_and_carries_the_options_that_it_has(no_options: None) -> None:
    assert typed("show", "a b") == "orchestrator show 'a b'"
    give(ADDRESS, "10.0.0.1:6379")
    give(STORE, "s3://bucket/it's mine")
    quoted = """'s3://bucket/it'"'"'s mine'"""
    assert typed("resume", "r1") == f"orchestrator resume r1 --address 10.0.0.1:6379 --store {quoted}"
    assert typed("runs") == f"orchestrator runs --store {quoted}"
    assert typed("models", "promote", "r1", "m") == f"orchestrator models promote r1 m --store {quoted}"
    assert typed("logs", "j", "--follow") == "orchestrator logs j --follow --address 10.0.0.1:6379"
    assert typed("recipes", "copy", "a", "b") == "orchestrator recipes copy a b"
    give(ADDRESS, None)
    assert typed("jobs") == "orchestrator jobs"


def test_next_steps_are_what_typed_makes(no_options: None, piped: None, capsys: pytest.CaptureFixture[str]) -> None:
    give(STORE, "s3://b")
    next_steps(("data", "show", "d", "--html", "my page.html"), ("recipes",))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "",
        "Next:",
        "  orchestrator data show d --html 'my page.html' --store s3://b",
        "  orchestrator recipes",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("resume", "r"),
        ("sweep", "--resume", "s"),
        ("show", "r"),
        ("runs",),
        ("status",),
        ("data", "push", "SOURCE"),
        ("data", "show", "d", "--html", "d.html"),
        ("train", "CONFIG"),
        ("check", "my.yaml"),
        ("report", "s", "--html", "report.html"),
        ("report", "s", "--json"),
        ("models", "promote", "r", "m"),
        ("models", "show", "m"),
        ("deploy", "m"),
        ("predict", "m", "INPUT"),
        ("batch-predict", "m", "SOURCE"),
        ("undeploy", "m"),
        ("logs", "j", "--follow"),
        ("stop", "j"),
        ("jobs",),
        ("up", "--redeploy"),
        ("down",),
        ("recipes", "copy", "digits-cnn", "my.yaml"),
    ],
)
def test_every_command_that_is_named_can_be_parsed_with_its_options(words: tuple[str, ...], no_options: None) -> None:
    give(ADDRESS, "10.0.0.1:6379")
    give(STORE, "s3://bucket/a b")
    parse(typed(*words))


def test_a_line_that_is_no_command_is_not_parsed(no_options: None) -> None:
    with pytest.raises(Exception, match="No such option: --nothing"):
        parse("orchestrator runs --nothing")


def next_lines(shown: str) -> list[str]:
    return [line.strip() for line in shown.partition("\nNext:\n")[2].splitlines() if line.strip()]


def paste(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Give a line to a shell, in which `orchestrator` is this one."""
    program = shlex.join([sys.executable, "-m", "orchestrator"])
    return subprocess.run(
        ["sh", "-c", f'orchestrator() {{ {program} "$@"; }}; {line}'],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )


@pytest.mark.store
def test_what_comes_next_works_when_it_is_pasted(store: Store, tmp_path: Path) -> None:
    url = store.settings.url
    pushed = run("data", "push", "sklearn:digits", "--store", url)
    lines = next_lines(pushed.stdout)
    assert lines == [f"orchestrator data show digits --html digits.html --store {url}", "orchestrator recipes"]
    for line in lines:
        found = paste(line, tmp_path)
        assert found.returncode == 0, found.stderr
    assert (tmp_path / "digits.html").exists()
    recipes = next_lines(found.stdout)
    assert recipes == ["orchestrator recipes copy digits-cnn my.yaml", "orchestrator train digits-cnn"]
    checks = next_lines(paste(recipes[0], tmp_path).stdout)
    assert checks == ["orchestrator check my.yaml", "orchestrator train my.yaml"]
    assert paste(checks[0], tmp_path).returncode == 0
    missing = run("show", "nothing", "--store", url)
    (cure,) = re.findall(r"See `(.*)`\.", missing.stderr)
    assert cure == f"orchestrator runs --store {url}"
    assert paste(cure, tmp_path).returncode == 0
    write_run(store, run="r1", kind="table")
    promoted = run("models", "promote", "r1", "shop", "--store", url)
    lines = next_lines(promoted.stdout)
    assert lines == [f"orchestrator {words} --store {url}" for words in ("deploy shop", "batch-predict shop table")]
    for line in lines:
        parse(line)


# --------------------------------------------------------------------------------------------------------- progress


def status(**values: Any) -> RunStatus:
    return RunStatus(updated=1.0, phase="training", epochs=3, steps=10, **values)


def test_each_line_of_piped_progress_says_what_it_is_about(piped: None, capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress(lambda: "train r1", lambda done: [f"epoch {done}/3: loss 0.5"]) as update:
        update(status(step=1, passed_over=["7-a: no marker"]))
        update(status(epoch=1))
        update(status(epoch=1, step=2))
        update(status(epoch=2))
    with counting_progress(lambda: "sweep s1", "cells") as count:
        count(1, 24, "")
        count(3, 24, "")
        count(5, 24, "1 failed")
    with push_progress("push digits") as (on_rows, on_download):
        on_download(0, 100, "data.zip")
        on_download(5, 100, "data.zip")
        on_download(50, 100, "data.zip")
        on_rows(1, 100)
        on_rows(50, 100)
        on_rows(100, 100)
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.splitlines() == [
        "train r1: passed over a checkpoint: 7-a: no marker",
        "train r1: epoch 1/3: loss 0.5",
        "train r1: epoch 2/3: loss 0.5",
        "sweep s1: 3/24 cells",
        "sweep s1: 5/24 cells, 1 failed",
        "push digits: downloading data.zip",
        "push digits: downloading data.zip, 50% of 100 B",
        "push digits: reading rows, 50%",
        "push digits: writing rows, 100%",
    ]


def test_a_terminal_gets_the_same_lines_in_the_same_order_on_the_same_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = terminal._Terminal(stderr=True, width=200)
    monkeypatch.setattr(shown, "_force_terminal", True)
    monkeypatch.setattr(terminal, "err", shown)
    with training_progress(lambda: "train r1", lambda done: [f"epoch {done}/3: loss 0.5"]) as update:
        update(status(step=1, passed_over=["7-a: no marker"]))
        update(status(epoch=2))
    found = capsys.readouterr()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", found.err)
    assert found.out == ""
    assert 0 <= plain.index("passed over a checkpoint: 7-a: no marker") < plain.index("epoch 2/3: loss 0.5")
    assert "train r1:" not in plain


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([(1, 24), (2, 24), (3, 24), (4, 24), (5, 24), (24, 24), (24, 24)], [3, 5, 24]),
        ([(1, 3), (2, 3), (3, 3)], [1, 2, 3]),
        ([(0, 0), (5, None)], []),
    ],
)
def test_a_line_is_due_when_another_tenth_is_done(steps: list[tuple[int, int | None]], told: list[int]) -> None:
    tenths = Tenths()
    assert [done for done, total in steps if tenths.is_new(done, total)] == told
