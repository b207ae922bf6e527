"""How a command line's process begins and ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from utils.errors import ConfigError, WeightsError
from utils.process import INTERRUPTED, OneLineParser, exit_code, is_only_ours, one_line

ROOT = Path(__file__).resolve().parent.parent.parent


def failing(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (WeightsError("a\nb.pt: is damaged"), 1, "error: a b.pt: is damaged"),
        (KeyboardInterrupt(), INTERRUPTED, "error: interrupted"),
        (MemoryError(), 1, "error: memory ran out; use a smaller --batch-size or --imgsz"),
    ],
)
def test_a_failure_is_one_line(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: failing(error)) == code
    assert capsys.readouterr().err == line + "\n"


def test_a_defect_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: failing(ZeroDivisionError()))


def test_all_well_is_nought() -> None:
    assert exit_code(lambda: None) == 0


def test_a_wrong_option_raises() -> None:
    parser = OneLineParser()
    parser.add_argument("--number", type=int)
    for words in (["--number", "x"], ["--other"], ["word"]):
        with pytest.raises(ConfigError, match="--help"):
            parser.parse_args(words)


@pytest.mark.parametrize(("text", "shown"), [("a\tb\r\nc", "a b  c"), ("é 中", "é 中"), ("\x1b[2J", " [2J")])
def test_a_line_has_no_control_characters(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_what_was_set_stays_and_the_rest_is_settled() -> None:
    code = (
        "import os, logging; from utils.process import prepare_process; prepare_process('%(message)s'); "
        "print(os.environ['OMP_NUM_THREADS'], os.environ['OMP_WAIT_POLICY']); logging.warning('two\\nlines\\udcff')"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "7"}
    environment.pop("OMP_WAIT_POLICY", None)
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("7 PASSIVE\n", "two lines \n")


def test_where_the_cache_of_code_is_somebody_elses_a_new_one_is_made(tmp_path: Path) -> None:
    (tmp_path / f"numba-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"numba-{os.getuid()}").chmod(0o777)
    script = "from utils.process import prepare_process as p; import os; p(); print(os.environ['NUMBA_CACHE_DIR'])"
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**kept, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, cwd=ROOT
    )
    made = Path(done.stdout.strip())
    assert made.parent == tmp_path and made.name != f"numba-{os.getuid()}" and made.stat().st_mode & 0o777 == 0o700


def test_a_cache_of_code_is_only_ours(tmp_path: Path) -> None:
    assert is_only_ours(tmp_path / "new") and (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "new")
    (tmp_path / "file").touch()
    assert not any(is_only_ours(tmp_path / name) for name in ("open", "link", "file", "absent/below"))
