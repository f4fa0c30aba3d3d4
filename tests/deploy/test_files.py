"""Written files and scratch folders: names are random, nothing is left, files of others are not touched."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from edgekit.deploy import files
from edgekit.deploy.errors import EdgeKitError
from edgekit.deploy.files import new_folder, require_writable, scratch_folder, write_file

from tests.conftest import DATA, EDGEKIT, heed_signals

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate TMPDIR for the test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def _child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that runs `code`, and wait for its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


_WRITES_FOREVER = """
    import sys, time
    from pathlib import Path
    from edgekit.deploy.files import new_folder
    with new_folder(Path(sys.argv[1])) as folder:
        (folder / "file").write_text("theirs")
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("name", [".report.json.{host}.{pid}.partial", ".report.json.partial", "report.json.part"])
def test_an_existing_link_is_not_followed(tmp_path: Path, name: str) -> None:
    """These are names that earlier versions wrote to, and others that can be guessed."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place = tmp_path / "out"
    place.mkdir()
    (place / name.format(host=os.uname().nodename, pid=os.getpid())).symlink_to(victim)
    write_file(place / "report.json", "report")
    assert victim.read_text() == "precious"
    assert (place / "report.json").read_text() == "report"


def test_names_of_drafts_are_unpredictable(tmp_path: Path) -> None:
    """A draft is for this user only; the finished file or folder has the mode of the user's umask."""
    suffixes = []
    for name in ("one", "two"):
        with new_folder(tmp_path / name) as folder:
            draft = folder.parent
            suffixes.append(draft.name.split("-")[-1])
            assert stat.S_IMODE(draft.stat().st_mode) == 0o700
        (tmp_path / f"plain-{name}").mkdir()
        assert (tmp_path / name).stat().st_mode == (tmp_path / f"plain-{name}").stat().st_mode
    write_file(tmp_path / "file", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert len(set(suffixes)) == 2
    assert len(suffixes[0].removesuffix(".partial")) >= 8


def test_a_leftover_with_the_same_process_id_blocks_nothing(tmp_path: Path) -> None:
    """Earlier versions named drafts after the process id, which a new process may have again."""
    (tmp_path / f".new.{os.uname().nodename}.{os.getpid()}.partial").mkdir()
    with new_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "new" / "file").read_text() == "x"


def test_a_draft_of_a_running_process_is_kept(tmp_path: Path) -> None:
    """Its host and process id do not matter, since containers may share both."""
    process = _child(_WRITES_FOREVER, tmp_path / "theirs")
    (draft,) = tmp_path.iterdir()
    with new_folder(tmp_path / "mine"):
        assert (draft / "content" / "file").read_text() == "theirs"
    write_file(tmp_path / "file", "x")
    assert (draft / "content" / "file").read_text() == "theirs"
    process.kill()
    process.communicate()
    write_file(tmp_path / "file", "y")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "mine"]


def test_the_second_writer_of_an_output_is_refused_at_once(tmp_path: Path) -> None:
    """It is refused before its work, not after it; the first writer completes."""
    with new_folder(tmp_path / "out") as folder:
        with pytest.raises(EdgeKitError, match="is being written by another process"), new_folder(tmp_path / "out"):
            pytest.fail("the second writer was accepted")
        (folder / "file").write_text("first")
    assert (tmp_path / "out" / "file").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_one_of_several_simultaneous_writers_wins(tmp_path: Path) -> None:
    """The others get a one-line error, and no output is mixed."""
    barrier, outcomes = threading.Barrier(8), []

    def write(name: str) -> None:
        barrier.wait()
        try:
            with new_folder(tmp_path / "out") as folder:
                for part in ("a", "b"):
                    (folder / part).write_text(name)
                    time.sleep(0.01)
            outcomes.append(name)
        except EdgeKitError as error:
            assert re.search("already exists|is being written", str(error))

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = outcomes
    assert {(tmp_path / "out" / part).read_text() for part in ("a", "b")} == {winner}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path, kind: str) -> None:
    """A plain rename would replace an empty folder."""

    def appear() -> None:
        {"folder": out.mkdir, "file": out.touch, "link": lambda: out.symlink_to("nowhere")}[kind]()

    out = tmp_path / "out"
    with pytest.raises(EdgeKitError, match="already exists"), new_folder(out) as folder:
        (folder / "file").write_text("x")
        appear()
    assert os.path.lexists(out)
    assert not (out / "file").exists()
    with pytest.raises(EdgeKitError, match="already exists"):
        write_file(out, "x", replace=False)


def test_scratch_folders_of_dead_processes_are_removed(scratch: Path) -> None:
    """Folders of running processes and of other programs are kept, and so are links."""
    code = """
        import time
        from edgekit.deploy.files import scratch_folder
        with scratch_folder() as folder:
            (folder / "file").write_text("x")
            print("ready", flush=True)
            time.sleep(60)
    """
    dead, running = _child(code), _child(code)
    dead.kill()
    dead.communicate()
    elsewhere = scratch.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (scratch / "edgekit-tmp-link").symlink_to(elsewhere)
    (scratch / "edgekit-1000").mkdir()
    (scratch / "edgekit-1000" / "lock").touch()  # a board's cache
    os.mkfifo(scratch / "edgekit-1000" / "fifo")
    (scratch / "edgekit-tmp-fifo").mkdir()
    os.mkfifo(scratch / "edgekit-tmp-fifo" / "lock")
    before = {entry.name for entry in scratch.iterdir()}
    with scratch_folder() as folder:
        assert list(folder.iterdir()) == []
    gone = before - {entry.name for entry in scratch.iterdir()}
    assert len(gone) == 1
    assert (elsewhere / "lock").exists()
    running.kill()
    running.communicate()


def test_a_folder_that_was_never_locked_is_removed_later(scratch: Path) -> None:
    """The process of an old one was killed; a new one may be locked in a moment."""
    for name in ("old", "new"):
        (scratch / f"edgekit-tmp-{name}").mkdir()
    os.utime(scratch / "edgekit-tmp-old", (time.time() - 7200,) * 2)
    with scratch_folder():
        pass
    assert [entry.name for entry in scratch.iterdir()] == ["edgekit-tmp-new"]


def test_without_locks_nothing_is_removed(scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no such locks."""
    leftover = scratch / "edgekit-tmp-old"
    leftover.mkdir()
    (leftover / "lock").touch()
    monkeypatch.setattr(files, "fcntl", None)
    with scratch_folder() as folder, new_folder(tmp_path / "out") as draft:
        (folder / "x").touch()
        (draft / "x").touch()
    write_file(tmp_path / "file", "x")
    assert leftover.is_dir()
    assert (tmp_path / "out" / "x").exists()


@pytest.mark.parametrize("place", ["/proc/nowhere", "/dev/null", "missing"])
def test_a_tmpdir_that_cannot_be_written_is_one_line(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other folder is used silently."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / place))
    with pytest.raises(EdgeKitError, match="cannot write temporary files") as caught, scratch_folder():
        pass
    assert "TMPDIR" in caught.value.fix
    assert str(tmp_path / place) in str(caught.value)


def test_a_full_tmpdir_is_one_line(scratch: Path) -> None:
    """The code that writes into the folder does not matter."""
    with pytest.raises(EdgeKitError, match="cannot write temporary files") as caught, scratch_folder() as folder:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "x"))
    assert "TMPDIR" in caught.value.fix
    assert list(scratch.iterdir()) == []
    with pytest.raises(FileNotFoundError), scratch_folder():
        Path("/nowhere/input").read_bytes()


def test_errors_of_other_files_do_not_blame_the_output(tmp_path: Path) -> None:
    """A missing input is not reported as an unwritable output."""
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out"):
        Path("/nowhere/input").read_bytes()


def test_checking_a_writable_location_changes_nothing(tmp_path: Path) -> None:
    """The check leaves nothing, and the old file stays."""
    write_file(tmp_path / "file", "old")
    require_writable(tmp_path / "file")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    with pytest.raises(EdgeKitError, match="is a folder"):
        require_writable(tmp_path)


def test_signals_leave_nothing(tmp_path: Path) -> None:
    """A signal during a validation gives exit code 128 + n and leaves no folder and no process.

    After kill -9 the scratch folder stays until the next command that needs one.
    """
    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL)
    command = ["validate", DATA / "lenet-int8", "--baseline", DATA / "lenet-fp32", "--seconds", "60"]
    places, processes = [], []
    for number in signals:
        place = tmp_path / number.name
        (place / "tmp").mkdir(parents=True)
        places.append(place)
        processes.append(
            subprocess.Popen(
                [*EDGEKIT, *map(str, command)],
                cwd=place,
                env={**os.environ, "TMPDIR": str(place / "tmp")},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=heed_signals,
            )
        )
    errors = {}
    for number, place, process in zip(signals, places, processes, strict=True):
        assert process.stderr
        assert any("loading" in line for line in iter(process.stderr.readline, ""))  # printed by its agent
        (folder,) = (place / "tmp").iterdir()
        process.send_signal(number)
        errors[number] = process.communicate(timeout=60)[1]
        if number == signal.SIGKILL:
            assert folder.is_dir()
            continue
        assert process.returncode == 128 + number
        assert "Traceback" not in errors[number]
        assert list((place / "tmp").iterdir()) == []
        assert _processes(str(folder)) == []
    environment = {**os.environ, "TMPDIR": str(places[-1] / "tmp")}
    code = "from edgekit.deploy.files import scratch_folder\nwith scratch_folder(): pass"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list((places[-1] / "tmp").iterdir()) == []


def _processes(text: str) -> list[str]:
    """The command lines of running processes that contain this text."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            lines.append(line)
    return lines


@pytest.mark.parametrize("ignored", [True, False])
def test_an_ignored_signal_stays_ignored(ignored: bool) -> None:
    """nohup relies on this."""
    code = """
        import signal, sys, time
        from edgekit.deploy.signals import ended_by_signals
        signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "True" else signal.SIG_DFL)
        with ended_by_signals():
            print("ready", flush=True)
            time.sleep(0.5)
    """
    process = _child(code, ignored)
    process.send_signal(signal.SIGHUP)
    process.communicate()
    assert process.returncode == (0 if ignored else 129)


def test_one_module_makes_temporary_files() -> None:
    """Files of other modules would survive signals and never be removed; a nameless file needs neither."""
    named = re.compile(r"mkdtemp|mkstemp|TemporaryDirectory|NamedTemporaryFile|gettempdir")
    allowed = {
        "deploy/files.py", "deploy/measuring/cargo.py",  # in a scratch folder
        "deploy/devices/board/bootstrap.py", "toolkit/packing/zipapp_main.py",  # run before EdgeKit is there
    }  # fmt: skip
    users = {
        path.relative_to(ROOT).as_posix()
        for folder in ("deploy", "export", "models", "toolkit")
        for path in (ROOT / folder).rglob("*.py")
        if named.search(path.read_text())
    }
    assert users <= allowed
