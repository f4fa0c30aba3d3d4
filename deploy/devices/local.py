"""This machine."""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .. import agent
from ..bundle import Bundle
from ..errors import DeviceError, EdgeKitError
from ..images import ImageSet
from ..measure import Progress
from ..measurement import Measurement
from ..plan import Plan
from . import Measured


class LocalDevice:
    """This machine, measured through the same agent as any other."""

    def measure(self, bundles: Sequence[Bundle], plan: Plan, images: ImageSet | None, progress: Progress) -> Measured:
        """Run the agent in a child process."""
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            job = Path(folder)
            paths = {bundle.id: str(bundle.path.resolve()) for bundle in bundles}
            (job / agent.JOB).write_text(json.dumps({"bundles": paths, "plan": plan.to_json()}))
            if images is not None:
                (job / agent.IMAGES).mkdir()
                images.save(job / agent.IMAGES)
            result = self._run(job, progress)
        measurements = [Measurement.from_json(entry) for entry in result["measurements"]]
        return Measured(result["environment"], measurements)

    def _run(self, job: Path, progress: Progress) -> dict:
        command = [sys.executable, "-m", agent.__name__, str(job)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
            assert process.stdout  # noqa: S101 # it is a pipe
            try:
                for line in process.stdout:
                    message = json.loads(line)
                    if "result" in message:
                        return message["result"]
                    if "error" in message:
                        raise EdgeKitError(message["error"], fix=message["fix"])
                    progress(message["progress"], message["share"])
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                raise
        raise DeviceError(
            f"the measuring process ended with exit code {process.returncode} and no result",
            fix="run edgekit doctor; the lines above say what happened",
        )
