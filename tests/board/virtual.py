"""A virtual ARM64 board behind its own ssh server: real aarch64 CPython and ONNX Runtime, emulated.

It shows that code, wheels, protocols and accuracy work on ARM; its latency says nothing about real boards. Needs root
(for the login account), and Debian's openssh-server and rsync.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.needs import need

HERE = Path(__file__).parent
# Built once, and kept with the environment: 15 seconds, 330 MB.
PLACE = HERE.parent.parent / ".venv/board"

_SERVER = """\
ListenAddress {address}
Port {port}
HostKey {ssh}/host_key
PidFile none
AuthorizedKeysFile {ssh}/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowUsers edge
UsePAM no
StrictModes no
UseDNS no
ClientAliveInterval 5
ClientAliveCountMax 3
ForceCommand {ssh}/enter
Subsystem sftp /usr/lib/openssh/sftp-server
"""
_CLIENT = """\
IdentityFile {ssh}/id
IdentitiesOnly yes
IdentityAgent none
UserKnownHostsFile {ssh}/known_hosts
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking yes
"""


def need_board() -> None:
    """Skip the test if no virtual board can be built."""
    need(os.geteuid() == 0, "root, for a virtual board", "run them as root", "EDGEKIT_BOARD")
    programs = [Path("/usr/sbin/sshd"), Path("/usr/bin/rsync"), Path("/usr/bin/dpkg-deb")]
    how = "apt-get install openssh-server openssh-sftp-server rsync"
    need(all(program.exists() for program in programs), "an ssh server and rsync", how, "EDGEKIT_BOARD")


def make() -> Path:
    """The board's folder, built if it does not exist. The boards below only read its files."""
    PLACE.parent.mkdir(exist_ok=True)
    with (PLACE.parent / "board.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (PLACE / "made").exists():
            shutil.rmtree(PLACE, ignore_errors=True)
            subprocess.run([HERE / "make.sh", PLACE, sys.executable], check=True)
    return PLACE


class VirtualBoard:
    """One board: a home, a profile (see enter.sh) and an ssh server; `ssh` is the folder of its keys and logs."""

    def __init__(self, folder: Path, port: int, address: str = "127.0.0.1", netns: str | None = None) -> None:
        self.folder, self.port, self.address = folder, port, address
        self._netns = ["ip", "netns", "exec", netns] if netns else []
        self._server: subprocess.Popen[bytes] | None = None
        source = make()
        # the boards share the system (an overlay); each keeps its own changes
        for name in ("upper", "work", "root", "tmp", "ssh", "client"):
            (folder / name).mkdir(parents=True)
        # copies, since the login account may not be able to read the checkout
        shutil.copytree(source / "bin", folder / "bin")
        shutil.copy(HERE / "enter.sh", folder)
        (folder / "empty").touch(mode=0o644)
        (folder / "tmp").chmod(0o1777)
        layers = f"lowerdir={source / 'root'},upperdir={folder / 'upper'},workdir={folder / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, folder / "root"], check=True)
        os.chown(folder / "root/home/edge", 1500, 1500)
        self.ssh = folder / "ssh"
        for key in ("host_key", "id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.ssh / key], check=True)
        shutil.copyfile(self.ssh / "id.pub", self.ssh / "authorized_keys")
        self.trust(self.ssh / "host_key.pub")
        (self.ssh / "config").write_text(_CLIENT.format(ssh=self.ssh))
        (self.ssh / "sshd_config").write_text(_SERVER.format(ssh=self.ssh, port=port, address=address))
        self._write_program(
            self.ssh / "enter", f'exec {folder}/enter.sh {folder} "${{SSH_ORIGINAL_COMMAND:-/bin/sh -i}}"'
        )
        # the account exists only for the server, in its mount namespace
        for name, line in (("passwd", f"edge:x:1500:1500::{folder}:/bin/sh"), ("group", "edge:x:1500:")):
            (self.ssh / name).write_text(f"{(Path('/etc') / name).read_text()}{line}\n")
        self._write_program(folder / "client/ssh", f'exec /usr/bin/ssh -F {self.ssh}/config "$@"')
        for path in (folder, *folder.parents):
            if path.stat().st_uid == 0 and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o055)

    @property
    def device(self) -> str:
        """The board's address."""
        return f"ssh://edge@{self.address}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a user whose ssh knows the board."""
        return {**os.environ, "PATH": f"{self.folder / 'client'}:{os.environ['PATH']}"}

    def trust(self, key: Path) -> None:
        """Make this the host key that the client expects."""
        host = self.address if self.port == 22 else f"[{self.address}]:{self.port}"
        (self.ssh / "known_hosts").write_text(f"{host} {key.read_text()}")

    def profile(self, **settings: object) -> None:
        """Replace the board's settings from its next login on (see enter.sh)."""
        (self.folder / "profile").write_text("".join(f"{name}='{value}'\n" for name, value in settings.items()))

    def start(self, cgroup: Path | None = None) -> None:
        """Start the ssh server; its child processes are in the cgroup too."""
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        ssh = self.ssh
        script = (
            f"{f'echo $$ >{cgroup}/cgroup.procs && ' if cgroup else ''}"
            f"mount --make-rprivate / && mount --bind {ssh}/passwd /etc/passwd && "
            f"mount --bind {ssh}/group /etc/group && exec /usr/sbin/sshd -D -f {ssh}/sshd_config -E {ssh}/log"
        )
        self._server = subprocess.Popen([*self._netns, "unshare", "-m", "sh", "-c", script], start_new_session=True)
        deadline = time.monotonic() + 10
        while "listening" not in (self.ssh / "log").read_text() if (self.ssh / "log").exists() else True:
            assert time.monotonic() < deadline, "the ssh server did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill the server and everything that it started, like a power cut."""
        if self._server is not None:
            for pid in [self._server.pid, *_descendants(self._server.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._server.wait()
            self._server = None
        (self.ssh / "log").unlink(missing_ok=True)

    def remove(self) -> None:
        """Stop the board and delete its files."""
        self.stop()
        deadline = time.monotonic() + 10
        while subprocess.run(["umount", self.folder / "root"], check=False, capture_output=True).returncode:
            assert time.monotonic() < deadline, "the board's files are still in use"
            time.sleep(0.1)
        shutil.rmtree(self.folder)

    def renew(self) -> None:
        """Reset to the initial state: an empty home, no settings, running."""
        self.profile()
        self.trust(self.ssh / "host_key.pub")
        shutil.copyfile(self.ssh / "id.pub", self.ssh / "authorized_keys")
        for folder in (self.folder / "root/home/edge", self.folder / "tmp"):
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if self._server is None:
            self.start()

    def files(self) -> list[str]:
        """The files on the board that a new one does not have."""
        folders = self.folder / "root/home/edge", self.folder / "tmp"
        return sorted(str(path.relative_to(self.folder)) for folder in folders for path in folder.rglob("*"))

    def python_processes(self) -> list[int]:
        """The process ids of the board's Python."""
        pids = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                program, *arguments = entry.read_text().split("\0")
                if program == f"{self.folder}/bin/qemu-aarch64" and "python3" in arguments[0]:
                    pids.append(int(entry.parent.name))
        return pids

    def _write_program(self, path: Path, text: str) -> None:
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


def _descendants(pid: int) -> list[int]:
    """All children, and recursively theirs."""
    children = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(entry.parent.name))
    return children + [descendant for child in children for descendant in _descendants(child)]


@contextlib.contextmanager
def board(folder: Path, port: int) -> Iterator[VirtualBoard]:
    """A board that runs during the `with` block."""
    made = VirtualBoard(folder, port)
    made.start()
    try:
        yield made
    finally:
        made.remove()
