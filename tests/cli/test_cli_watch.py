"""`fedsparse watch` and what it reads: the records, progress.json, and whether a process holds the folder."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from pathlib import Path

import pytest
from fake_loop import FakeLoop

from fedsparse.cli import main
from fedsparse.cli import progress as progress_module
from fedsparse.cli.folders import locked
from fedsparse.cli.progress import Bar, status_facts
from fedsparse.cli.watch import is_running
from fedsparse.federated.status import Teller

Capture = pytest.CaptureFixture[str]
STATUS = {
    "round": 3, "rounds": 8, "clients_done": 2, "clients": 5, "rejected": 1, "dropped": 2, "bytes_down": 2_000_000,
    "bytes_up": 1_000_000, "accuracy": 0.5, "peak_bytes": 5_000_000, "seconds_left": 12.0,
}  # fmt: skip


def test_a_complete_run_is_shown_whole(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    assert main(["run", "pair/dense.toml", "--out", "done", "-q"]) == 0
    capsys.readouterr()
    assert main(["watch", "done"]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"dense: round {n}/4" for n in range(1, 5)
    ]


def test_a_run_whose_process_is_gone_gets_a_sentence(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    fake_loop.failure, fake_loop.fail_at = KeyboardInterrupt(), 2
    assert main(["run", "pair/dense.toml", "--out", "cut", "-q"]) == 130
    capsys.readouterr()
    assert main(["watch", "cut"]) == 3
    assert capsys.readouterr().err.endswith(
        "error: the run in cut is not going on; it has 2 rounds, and `fedsparse resume cut` goes on\n"
    )
    assert main(["watch", "pair"]) == 2
    assert "no run's folder" in capsys.readouterr().err


def test_a_run_is_watched_to_its_end(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    assert main(["run", "pair/dense.toml", "--out", "live", "-q"]) == 0
    folder = here / "live"
    result, records = folder / "result.json", folder / "rounds.jsonl"
    whole, last = result.read_text(), records.read_text()
    result.unlink()
    records.write_text("".join(last.splitlines(keepends=True)[:2]))
    capsys.readouterr()

    def finish() -> None:
        time.sleep(1)
        records.write_text(last)
        result.write_text(whole)

    with locked(folder):
        assert is_running(folder)
        thread = threading.Thread(target=finish)
        thread.start()
        assert main(["watch", "live"]) == 0
        thread.join()
    assert not is_running(folder)
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_one_folder_has_one_run(here: Path, fake_loop: FakeLoop, capsys: Capture) -> None:
    fake_loop.failure, fake_loop.fail_at = KeyboardInterrupt(), 0
    assert main(["run", "pair/dense.toml", "--out", "cut", "-q"]) == 130
    capsys.readouterr()
    with locked(here / "cut"):
        assert main(["resume", "cut"]) == 2
    assert capsys.readouterr().err == "error: cut is in use: its run is still going on in another process\n"


def test_what_is_seen_within_a_round() -> None:
    assert "  ".join(status_facts(STATUS)) == (
        "clients 2/5  12 s left  accuracy 50.0 %  2.00 MB down 1.00 MB up  5.00 MB memory  1 rejected  2 dropped"
    )


@pytest.mark.parametrize("columns", [80, 160])
def test_a_narrow_terminal_still_shows_round_bar_and_time_left(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import rich.console

    made, true_console = [], rich.console.Console

    def narrow(**_: object) -> rich.console.Console:
        made.append(true_console(file=io.StringIO(), width=columns, force_terminal=True))
        return made[-1]

    monkeypatch.setattr(rich.console, "Console", narrow)
    with progress_module.bar("prunefl-at-a-tenth", 100) as shown:
        shown.status(STATUS | {"round": 41, "rounds": 100})
        within = shown.progress.get_renderable()
        text = _text(within, columns)
        assert "prunefl-at-a-tenth" in text
        assert "41/100" in text
        assert "clients 2/5  12 s left" in text
        assert ("2 dropped" in text) == (columns == 160)
        record = {"round": 41, "seconds": 2.0, "accuracy": 0.5, "density": 0.1, "bytes_down": 1, "bytes_up": 1}
        shown.round(record | {"peak_bytes": 1})
        text = _text(shown.progress.get_renderable(), columns)
        assert "42/100 1 min 56 s left  accuracy 50.0 %" in text


def _text(renderable: object, columns: int) -> str:
    from rich.console import Console

    console = Console(width=columns, file=io.StringIO())
    with console.capture() as captured:
        console.print(renderable)
    return re.sub(r"\x1b\[[0-9;]*m", "", captured.get())


def test_the_bar_moves_within_a_round() -> None:
    class Progress:
        def add_task(self, name: str, **fields: object) -> int:
            return 7

        def update(self, task: int, **fields: object) -> None:
            seen.append((task, fields["completed"]))

    seen: list[tuple[int, object]] = []
    Bar(Progress(), "x", 8).status(STATUS)
    assert seen == [(7, 3.4)]


def test_a_status_is_told_now_and_then_and_left_whole_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("fedsparse.federated.status.time.monotonic", lambda: clock[0])
    seen: list[dict] = []
    teller = Teller(tmp_path, seen.append)
    start = {**STATUS, "round": 2, "clients_done": 0}
    teller.tell(start)
    clock[0] += 0.1
    teller.tell(start)
    assert len(seen) == 1
    clock[0] += 3.9
    teller.tell({**start, "clients_done": 5})
    # One of the 6 rounds from 2 to 8 took 4 s.
    assert [status["seconds_left"] for status in seen] == [None, 20.0]
    assert json.loads((tmp_path / "progress.json").read_text()) == seen[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]
