"""What all commands share: which errors become one line, and with which exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from bintally import errors
from bintally.cli import readable_errors


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigError("lr must be above 0"),
        errors.SourceUnreachableError("s3://x cannot be read"),
        errors.RowError("no_quantity", "detail"),
        errors.CheckpointError("no checkpoint at /x"),
        errors.RunError("the training failed"),
    ],
)
def test_an_expected_error_is_one_line_and_exit_code_2(
    error: errors.BinTallyError, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, readable_errors():
        raise error
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", f"error: {error}\n")


def test_ctrl_c_is_exit_code_130_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, readable_errors():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), AssertionError("a bug"), OSError("a bug")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, readable_errors():
        raise error
    assert caught.value is error


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, readable_errors():
        Path("/dev/full").write_text("x")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: a file cannot be written: No space left on device\n"


def test_a_path_that_cannot_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught, readable_errors():
        (tmp_path / "file/below").mkdir()
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/file/below: Not a directory\n"


def test_a_reader_that_has_enough_ends_it_quietly() -> None:
    code = """if True:
        from bintally.cli import readable_errors
        with readable_errors():
            while True:
                print("0" * 1000)
    """
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert command.stdout is not None
    assert command.stdout.readline() == "0" * 1000 + "\n"
    command.stdout.close()
    assert command.stderr is not None
    assert (command.stderr.read(), command.wait(timeout=60)) == ("", 141)
    command.stderr.close()


def test_a_connection_that_broke_is_no_such_reader() -> None:
    with pytest.raises(BrokenPipeError), readable_errors():
        raise BrokenPipeError


def test_nothing_happens_when_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    with readable_errors():
        pass
    assert capsys.readouterr() == ("", "")


def test_every_error_has_one_root_and_stands_in_the_tree() -> None:
    tree = errors.__doc__ or ""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(one, errors.BinTallyError) for one in classes)
    assert [one.__name__ for one in classes if one.__name__ not in tree] == []


def test_a_row_error_carries_its_reason_apart_from_the_detail() -> None:
    error = errors.LabelError("bad_quantity", "EXPECTED_QUANTITY is -1")
    assert error.reason == "bad_quantity"
    assert str(error) == "bad_quantity: EXPECTED_QUANTITY is -1"
    assert str(errors.LabelError("missing_label")) == "missing_label"
