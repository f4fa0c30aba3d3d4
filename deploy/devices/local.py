"""This machine."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .. import agent
from ..agent import Measured
from ..bundle import Bundle
from ..images import ImageSet
from ..measure import Progress
from ..plan import Plan
from ..session import PACKAGES


class LocalDevice:
    """This machine, measured through the same agent as any other."""

    def __init__(self, name: str = "local") -> None:
        self.name = name

    def __enter__(self) -> "LocalDevice":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is held."""

    def formats(self) -> set[str]:
        """The formats whose runtime is installed."""
        return {name for name, package in PACKAGES.items() if package is None or find_spec(package)}

    def measure(self, bundles: Sequence[Bundle], plan: Plan, images: ImageSet | None, progress: Progress) -> Measured:
        """Run the agent in a child process."""
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            job = Path(folder)
            paths = {bundle.id: str(bundle.path.resolve()) for bundle in bundles}
            (job / agent.JOB).write_text(json.dumps({"bundles": paths, "plan": plan.to_json()}), encoding="utf-8")
            if images is not None:
                (job / agent.IMAGES).mkdir()
                images.save(job / agent.IMAGES)
            command = [sys.executable, "-m", agent.__name__, str(job)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
                assert process.stdout  # noqa: S101 # it is a pipe
                try:
                    return agent.follow(process.stdout, progress)
                finally:
                    process.kill()
