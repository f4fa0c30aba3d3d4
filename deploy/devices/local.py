"""This machine."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..bundle import Bundle
from ..engine.build import Options
from ..errors import DeviceError
from ..files import scratch_folder
from ..images import ImageSet
from ..measuring import agent, cargo
from ..measuring.agent import Measured
from ..measuring.plan import Plan
from ..progress import Progress
from ..runtimes.runtime import all_runtimes
from .device import Device

# Time for a terminated agent to wait for its workers.
_PATIENCE_S = 5.0


class LocalDevice(Device):
    """This machine, measured through the same agent as other devices.

    Args:
        planted: the models belong to the self-test (see runtime.PLANTED).
    """

    here = True

    def __init__(self, name: str = "local", *, planted: bool = False) -> None:
        if name != "local":
            raise DeviceError(f"{name} is not this machine", fix="--device local")
        self.name, self._planted = name, planted

    def runtimes(self) -> set[str]:
        """The installed runtimes."""
        return {runtime.name for runtime in all_runtimes() if runtime.installed}

    def measure(self, bundles: Sequence[Bundle], plan: Plan, images: ImageSet | None, progress: Progress) -> Measured:
        """Run the agent in a child process."""
        with scratch_folder() as job:
            paths = {bundle.id: str(bundle.path.resolve()) for bundle in bundles}
            if images is not None:
                (job / agent.IMAGES).mkdir()
                images.save(job / agent.IMAGES)
            request = {**cargo.job(bundles, plan), "bundles": paths, "planted": self._planted}
            return Measured.from_json(_run(job, request, progress), self.name, bundles, len(images or ()), plan)

    def build(self, bundle: Bundle, options: Options, out: Path, progress: Progress) -> None:
        """Build an engine in a child process, because native code may crash it."""
        with scratch_folder() as job:
            _run(job, cargo.build_job(bundle, options, str(bundle.path.resolve())), progress)
            cargo.adopt(job / agent.BUILT, bundle, out)


def _run(job: Path, request: Mapping[str, object], progress: Progress) -> dict[str, object]:
    """Run the agent on a job in a child process; returns its result."""
    (job / agent.JOB).write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, "-m", agent.__name__, str(job)]
    # temporary files of the agent and its workers are removed with the job
    environment = {**os.environ, "TMPDIR": str(job)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment) as process:
        assert process.stdout  # noqa: S101 # it is a pipe
        try:
            return agent.follow(process.stdout, progress)
        except KeyboardInterrupt:
            process.terminate()  # the agent ends its workers
            raise
        finally:
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
