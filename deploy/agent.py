"""The agent: measures on the machine where it runs: `python -m edgekit.deploy.agent JOB`.

A job is a folder: `job.json` (bundles, plan), and, when there are test images, `images/`. The agent prints progress as
JSON lines and ends with one line: the result, or what went wrong. It needs Python, numpy, Pillow and the runtime.
"""

import json
import sys
from pathlib import Path
from typing import Any

from .environment import allowed_cores, cores_got, describe, fastest_cores, state
from .errors import EdgeKitError
from .measure import measure
from .plan import Plan

JOB, IMAGES = "job.json", "images"


def run(job: Path) -> dict[str, Any]:
    """Measure what the job asks for; progress goes to standard output."""
    request = json.loads((job / JOB).read_text())
    images = job / IMAGES
    plan = Plan.from_json(request["plan"])
    cores = fastest_cores(plan.threads or allowed_cores())
    environment = {
        **describe(),
        "cores_got": round(cores_got(allowed_cores()), 2),
        "cores_pinned": cores or "none",
        "before": state(),
    }
    measurements = measure(
        {name: Path(path) for name, path in request["bundles"].items()},
        plan,
        images if images.is_dir() else None,
        cores,
        lambda what, share: _say({"progress": what, "share": share}),
    )
    return {
        "environment": {**environment, "after": state()},
        "measurements": [measurement.to_json() for measurement in measurements],
    }


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    """Run the job named on the command line."""
    try:
        _say({"result": run(Path(sys.argv[1]))})
    except EdgeKitError as error:
        _say({"error": str(error), "fix": error.fix})


if __name__ == "__main__":
    main()
