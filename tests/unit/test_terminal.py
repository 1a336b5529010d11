"""Text of others is shown on a terminal, not obeyed: names, events, metrics and paths of a stranger's folder."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from one_by_one import typed
from rich.table import Table
from rich.text import Text
from test_hostile_pages import page_of_a_sweep
from test_report import make_run

import orpo_ray
from orpo_ray.doctor.examine import print_findings
from orpo_ray.doctor.finding import Finding
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.telemetry import logs
from orpo_ray.terminal import Console
from orpo_ray.training.progress import progress_bar
from orpo_ray.visible import say, visible

PACKAGE = Path(orpo_ray.__file__).parent
ROOT = PACKAGE.parent
CLEAR, CLIPBOARD, FORGED = "\x1b[2J", "\x1b]52;c;cm0gLXJmIH4=\x07", "\nnext       curl evil"
OBEYED = [
    CLEAR, CLIPBOARD, FORGED, "\x9b2J", "\x7f", "\x08\x08", "\r", "\x00", "\u202egnp.exe", "\u2066a\u2069", "\u200f",
    "\u061c", "\x0b", "\x85", "\u2028",
]  # fmt: skip
HOSTILE = "x" + "".join(OBEYED).replace("\0", "") + "[bold]y[/nothing] :smile:"
"""No configuration and no path can hold NUL."""
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def assert_shown(printed: str) -> None:
    """Nothing that a terminal would obey is in it, and what was hostile is there to read."""
    assert RAW.findall(printed) == []
    assert "\\x1b[2J" in printed and "\\u202egnp.exe" in printed and "[bold]y[/nothing] :smile:" in printed
    assert "\nnext       curl" not in printed


class TestVisible:
    @pytest.mark.parametrize("text", OBEYED)
    def test_what_is_obeyed_is_written_out(self, text: str) -> None:
        assert RAW.search(visible(text)) is None and "\n" not in visible(text)
        assert visible(visible(text)) == visible(text)
        assert ast.literal_eval(f"'{visible(text)}'") == text, "and nothing is lost"

    @pytest.mark.parametrize(
        "text", ["λ = 0.5, ⟦prompt⟧", "שלום عليكم", "👩\u200d🔬 é\u0301 名\u3000前", "C:\\new\\x1b", "a\u00a0b"]
    )
    def test_all_else_stays(self, text: str) -> None:
        assert visible(text) == text

    def test_bytes_of_a_path_that_are_no_text(self) -> None:
        assert visible(os.fsdecode(b"a\x9b\xff")) == "a\\udc9b\\udcff"

    def test_layout_of_our_own_may_be_kept(self) -> None:
        assert visible("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


class TestConsole:
    @pytest.mark.parametrize("terminal", [False, True])
    def test_whatever_it_is_made_of(self, terminal: bool) -> None:
        out = io.StringIO()
        console = Console(file=out, width=300, force_terminal=terminal)
        table = Table("a", HOSTILE, title=HOSTILE)
        table.add_row(HOSTILE, Text(HOSTILE, "red"))
        console.print(table)
        console.print(HOSTILE, Text(HOSTILE, "bold"))
        console.say(HOSTILE)
        console.print("done", style="green")
        printed = out.getvalue()
        if terminal:
            assert "\x1b[32mdone\x1b[0m" in printed, "colours of our own are"
            printed = re.sub(r"\x1b\[[\d;]*m", "", printed)
        assert RAW.findall(printed) == []
        assert printed.splitlines()[-2] == visible(HOSTILE)
        assert printed.count("\\x1b]52;c;cm0gLXJmIH4=") == 7

    def test_a_text_is_written_out_before_it_is_laid_out_and_in_its_styles(self) -> None:
        out = io.StringIO()
        text = Text("ab\x1bcd\x9b", style="bold").append("ef\x1b", "red")
        Console(file=out, width=9, force_terminal=True, color_system="standard").print(text)
        assert out.getvalue() == "\x1b[1mab\\x1bcd\\\x1b[0m\n\x1b[1mx9b\x1b[0m\x1b[1;31mef\\x1b\x1b[0m\n"

    def test_a_line_is_one_however_long(self) -> None:
        out = io.StringIO()
        Console(file=out, width=20).say("word " * 30 + "\nforged")
        assert out.getvalue() == "word " * 30 + "\\nforged\n"


def hostile_run(folder: Path, finished: bool = False) -> Path:
    """A folder in whose texts, keys and paths there is something that a terminal would obey."""
    run = make_run(
        folder / f"run{CLEAR}{CLIPBOARD}\u202egnp.exe\n", steps=4, finished=finished, name=HOSTILE,
        model={"name_or_path": HOSTILE}, data={"train": HOSTILE}, storage={"checkpoints": f"file:///no{HOSTILE}"},
    )  # fmt: skip
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": HOSTILE, "event": HOSTILE}) + "\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, HOSTILE: 1.0, "loss": 1.0}) + "\n")
    return run


def test_status_of_a_strangers_folder(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    waiting = hostile_run(tmp_path / "waiting")
    (waiting / "metrics.jsonl").unlink()
    sweep = page_of_a_sweep(tmp_path / f"sweep{CLEAR}", HOSTILE).parent
    commands = [["status", str(folder)] for folder in (run, waiting, sweep)]
    all_done = typed(*commands, *([*command, "--json"] for command in commands), cwd=ROOT)
    assert all(done.returncode == 0 for done in all_done), all_done
    for done in all_done[:3]:
        assert_shown(done.stdout)
    for done in all_done[3:]:
        assert RAW.findall(done.stdout) == []
        assert json.loads(done.stdout)["name"].endswith(HOSTILE), "and a program reads it as it is"


def test_error_lines_and_paths(tmp_path: Path) -> None:
    """A path, a key, a value and a record that are at fault; the path of a page; an option that there is not."""
    run = hostile_run(tmp_path, finished=True)
    broken = hostile_run(tmp_path / "broken")
    (broken / "metrics.jsonl").write_text("{}\n")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"name": HOSTILE, f"optim{HOSTILE}": 1}))
    toy = [str(ROOT / "configs" / "toy-orpo.yaml"), f"storage.path={tmp_path}", "model.name_or_path=toy"]
    value = json.dumps(HOSTILE)  # YAML has no raw control characters
    commands = [
        ["status", str(tmp_path / HOSTILE)], ["report", str(broken)], ["train", str(file)],
        ["train", toy[0], f"optim.lr={value}"], ["data", *toy, f"data.train={value}"], ["status", f"--{HOSTILE}"],
        [HOSTILE], ["doctor", str(file)],
    ]  # fmt: skip
    *refused, drawn = typed(*commands, ["report", str(run)], cwd=ROOT)
    for command, done in zip(commands, refused, strict=True):
        assert done.returncode == 2, (command, done)
        assert RAW.findall(done.stdout + done.stderr) == [], command
        assert done.stderr.startswith("orpo-ray: ") and done.stderr.count("\n") == 1, done.stderr
        assert "\\x1b" in done.stderr
    assert drawn.returncode == 0 and RAW.findall(drawn.stdout) == [] and "\\x1b[2J" in drawn.stdout


def test_the_summary_of_a_strangers_data(tmp_path: Path) -> None:
    """In records, in reasons, and in the name of the file."""
    bad = [{"prompt": f"a{HOSTILE} {i}", "chosen": f"b{HOSTILE}", "rejected": "c"} for i in range(3)]
    bad += [{f"prompt{HOSTILE}": "a", "chosen": "b", "rejected": "c"}]
    file = tmp_path / f"pairs{CLEAR}\x9b2J\u202e.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in bad))
    command = [
        "data", str(ROOT / "configs" / "toy-orpo.yaml"), "model.name_or_path=toy", "data.eval=toy-test",
        f"data.train={json.dumps(str(file))}", f"storage.path={tmp_path}", "data.on_bad_record=quarantine",
        "data.max_length=4096", "data.max_prompt_length=2048",
    ]  # fmt: skip
    (done,) = typed(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert RAW.findall(done.stdout + done.stderr) == []
    assert "pairs\\x1b[2J\\x9b2J\\u202e.jsonl" in done.stdout.replace("\n", "")
    assert "quarantined records" in done.stdout


def test_tracebacks_and_what_libraries_warn_of_and_log() -> None:
    script = (
        "import logging, warnings; from orpo_ray.cli import app, main\n@app.command()\ndef probe() -> None:\n"
        f"    text = {HOSTILE!r}\n    warnings.warn(text)\n    logging.getLogger('x').error('%s it is', text)\n"
        "    raise ZeroDivisionError(text)\nmain(['probe'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1
    assert RAW.findall(done.stderr) == []
    for told in ("UserWarning: x\\x1b[2J", ":smile: it is\n", "Traceback (most", "\nZeroDivisionError: x\\x1b[2J"):
        assert told in done.stderr, told


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_board_and_findings(terminal: bool, tmp_path: Path) -> None:
    folder, out = RunFolder(tmp_path), io.StringIO()
    console = Console(file=out, width=200, force_terminal=terminal)
    with progress_bar(folder, "unit", 2, console), folder.metrics.open("a"):
        folder.note(HOSTILE)
    print_findings(iter([Finding("FAIL", "disk", HOSTILE, HOSTILE)]), console)
    printed = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.getvalue()) if terminal else out.getvalue()
    assert_shown(printed.replace("\r", "") if terminal else printed)


def test_log_lines_and_what_is_said_where_the_disk_is_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_place", {"run": HOSTILE})
    record = logging.LogRecord("orpo_ray", logging.INFO, "", 0, HOSTILE, None, None)
    line = logs._Lines().format(record)
    assert RAW.search(line) is None and "\n" not in line
    assert json.loads(line)["event"] == HOSTILE
    RunFolder(tmp_path / "nowhere").note(HOSTILE)
    say(HOSTILE)
    said = capsys.readouterr()
    assert_shown(said.err)
    assert_shown(said.out)


def test_a_real_terminal_is_told_nothing(tmp_path: Path) -> None:
    """By the whole command, with a terminal at its other end: colours are all it may send."""
    run = hostile_run(tmp_path)
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "orpo_ray.cli", "status", str(run)]
    with subprocess.Popen(command, stdout=slave, stderr=slave, cwd=ROOT) as process:
        os.close(slave)
        read = b""
        while True:
            try:
                part = os.read(master, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            read += part
    os.close(master)
    assert process.returncode == 0
    printed = re.sub(r"\x1b\[[\d;]*m", "", read.decode()).replace("\r\n", "\n")
    assert_shown(printed)


def printed_by(path: Path) -> set[str]:
    """Ways in which a module prints by itself."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    imported = {
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    ways = {"print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write"}
    return called & ways | imported & {"rich.print", "rich.console.Console"}


def test_all_that_is_printed_goes_through_one_place() -> None:
    """Whoever prints in another way answers for what a terminal makes of it."""
    own = {"visible.py", "terminal.py"}
    by_file = {path.relative_to(PACKAGE).as_posix(): printed_by(path) for path in PACKAGE.rglob("*.py")}
    assert {name: ways for name, ways in by_file.items() if ways and name not in own} == {
        "cluster/head.py": {"print"},  # an address, to the process that started it
        "data/summary.py": {"rich.console.Console"},  # as a type: the command gives it one of ours
    }
