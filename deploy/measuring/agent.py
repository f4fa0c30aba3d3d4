"""The agent, which measures or builds on the machine where it runs: `python -m edgekit.deploy.measuring.agent JOB`.

A job is a folder: `job.json` (bundles and a plan, or a bundle to build an engine from), and, if there are test
images, `images/`. The agent prints JSON lines: progress, after each process the measurements so far, and at the end the
result or an error. It needs Python, numpy, Pillow and the runtime.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypedDict, TypeVar, cast

from ..bundle import Bundle
from ..documents import DocumentError, check_numbers, parse, plain, read, within
from ..engine.build import Options, build
from ..environment import allowed_cores, cores_got, describe, fastest_cores, free_cores, state
from ..errors import DeviceError, EdgeKitError, LostDeviceError
from ..progress import Progress
from ..session import runtime_for
from ..signals import ended_by_signals
from .measure import measure
from .measurement import Environment, Measurement, check_measurements
from .plan import Plan
from .race import check_race, race

T = TypeVar("T")

JOB, IMAGES, BUILT = "job.json", "images", "built"

# Characters of a device's message that an error shows.
_SHOWN = 1000
# Maximum number of lists and objects in a message. A day of three models has a million. In memory, an empty one takes
# 30 times its text.
_MAX_PARTS = 2_000_000

# A job holds a plan and the paths of a few bundles.
_MAX_JOB_BYTES = 1 << 20


class Message(TypedDict, total=False):
    """A line of JSON that an agent prints: progress, the measurements so far, the result, or an error."""

    progress: str
    share: float
    measured: "MeasuredEntry"
    result: "MeasuredEntry | dict[str, str]"
    error: str
    fix: str


Send = Callable[[Message], None]


class MeasuredEntry(TypedDict):
    """The output of `Measured.to_json`: each measurement as plain values."""

    environment: Environment
    measurements: Sequence[Mapping[str, object]]
    failed: Mapping[str, str]


class Measured(NamedTuple):
    """A device's report: its environment, and one measurement per candidate, in the plan's order.

    In a race, `failed` has the candidates that cannot be loaded or run there, and why; they have no measurement.
    """

    environment: Environment
    measurements: list[Measurement]
    failed: Mapping[str, str] = MappingProxyType({})

    def to_json(self) -> MeasuredEntry:
        """Convert to plain values."""
        return {
            "environment": self.environment, "measurements": plain(self.measurements), "failed": dict(self.failed),
        }  # fmt: skip

    @classmethod
    def from_json(
        cls, data: object, device: str, bundles: Sequence[Bundle], images: int, plan: Plan | None = None
    ) -> "Measured":  # fmt: skip
        """Read what `to_json` wrote on a device that measured these bundles on this number of images.

        Args:
            plan: the plan of the measurement; None runs each bundle on its default runtime.

        Raises:
            DeviceError: `data` is not such a measurement.
        """
        try:
            answer = read(_Measured, data)
            check_numbers(answer.environment)
            measurements = list(answer.measurements)
            labels = {bundle.id: len(bundle.manifest.labels) for bundle in bundles}
            plan = plan or Plan()
            candidates = plan.measured(labels)
            failed = {key[:_SHOWN]: reason[:_SHOWN] for key, reason in answer.failed.items()} if plan.race else {}
            classes = {entry.key: labels[entry.bundle] for entry in candidates if entry.key not in failed}
            check_measurements(measurements, classes, images)
            if plan.race is not None:
                check_race(measurements, candidates[0].key, plan.race)
        except DocumentError as error:
            raise DeviceError(
                f"{device} sent an invalid measurement: {error}",
                fix="run it again; if it happens again, do not trust this device",
            ) from error
        return cls(answer.environment, measurements, failed)


class _Job(NamedTuple):
    """A measurement to make (see cargo.job): bundle id -> folder, the plan, the device's name.

    `planted` enables the runtimes that test measuring itself.
    """

    bundles: Mapping[str, str]
    plan: Plan
    device: str | None
    planted: bool = False


class _BuildJob(NamedTuple):
    """An engine to build (see cargo.build_job)."""

    bundle: str
    named: str
    options: Options


class _Measured(NamedTuple):
    """The output of `Measured.to_json`."""

    environment: Environment
    measurements: tuple[Measurement, ...]
    failed: Mapping[str, str] = MappingProxyType({})


class _Failure(NamedTuple):
    """An error on a device, and how to fix it."""

    error: str
    fix: str


class _Progress(NamedTuple):
    """The current stage of a device, and the share done."""

    progress: str
    share: float


def run(job: Path, send: Send) -> Measured:
    """Measure the job; `send` receives progress and intermediate results.

    Raises:
        EdgeKitError: a model cannot be loaded or run.
    """
    request = _read_as(_Job, _read(job), job)
    images, plan, allowed = job / IMAGES, request.plan, allowed_cores()
    for candidate in plan.measured(request.bundles) if plan.race is None else ():  # before minutes are spent
        bundle = Bundle.open(job / request.bundles[candidate.bundle])
        runtime = runtime_for(bundle, candidate.choice and candidate.choice.name, planted=request.planted)
        if runtime.check is not None:
            runtime.check(bundle, request.device)
    got = cores_got(allowed)
    threads = plan.threads or free_cores(allowed, got)
    own_threads = (candidate.threads or 0 for candidate in plan.measured(request.bundles))
    cores = fastest_cores(max(threads, *own_threads))
    environment = {
        **describe(),
        "cores_got": round(got, 2),
        "cores_pinned": cores or "none",
        "threads": threads,
        "before": state(),
    }

    def measured(measurements: Sequence[Measurement], failed: Mapping[str, str] = MappingProxyType({})) -> Measured:
        return Measured(cast("Environment", {**environment, "after": state()}), list(measurements), failed)

    def keep(measurements: Sequence[Measurement], failed: Mapping[str, str] = MappingProxyType({})) -> None:
        send({"measured": measured(measurements, failed).to_json()})

    def progress(stage: str, share: float) -> None:
        send({"progress": stage, "share": share})

    bundles = {name: job / path for name, path in request.bundles.items()}
    plan, shown = replace(plan, threads=threads), images if images.is_dir() else None
    if plan.race is not None:
        return measured(*race(bundles, plan, shown, cores, progress, keep, planted=request.planted))
    return measured(measure(bundles, plan, shown, cores, progress, keep, planted=request.planted))


def build_engine(job: Path, send: Send) -> dict[str, str]:
    """Build the engine that the job asks for, as the bundle `BUILT` in the job's folder.

    Raises:
        EdgeKitError: the engine cannot be built here.
    """
    request = _read_as(_BuildJob, _read(job)["build"], job)
    build(
        Bundle.open(job / request.bundle), job / BUILT, request.options,
        lambda stage, share: send({"progress": stage, "share": share}), named=request.named,
    )  # fmt: skip
    return {BUILT: BUILT}


def run_and_report(job: Path, send: Send) -> None:
    """Run a job and report its result or its error."""
    try:
        send({"result": build_engine(job, send) if "build" in _read(job) else run(job, send).to_json()})
    except EdgeKitError as error:
        send({"error": str(error), "fix": error.fix})


def _read(job: Path) -> dict[str, object]:
    content = parse((job / JOB).read_bytes(), job / JOB, "a job", limit=_MAX_JOB_BYTES)
    return _read_as(dict[str, object], content, job)


def _read_as(kind: type[T], content: object, job: Path) -> T:
    """Read a part of a job as this type.

    Raises:
        DeviceError: it has another type.
    """
    try:
        return read(kind, content)
    except DocumentError as error:
        raise DeviceError(
            f"{job / JOB} is not a valid job: {error}", fix="run the command that made it again"
        ) from error


def follow(lines: Iterable[str], progress: Progress) -> dict[str, object]:
    """Read an agent's output until its result, which for a measurement is the output of Measured.to_json.

    Raises:
        EdgeKitError: the agent reported an error.
        LostDeviceError: the agent's output ends before its result; the error has the measurements so far.
    """
    so_far = None
    try:
        for line in lines:
            message = parse_message(line)
            if "result" in message:
                return read(dict[str, object], message["result"])
            if "error" in message:
                failure = read(_Failure, message)
                raise EdgeKitError(failure.error[:_SHOWN], fix=failure.fix[:_SHOWN])
            if "measured" in message:
                so_far = message["measured"]
            if "progress" in message:
                current = read(_Progress, message)
                within(current.share, 0, 1 + 1e-6, "share")
                progress(current.progress[:_SHOWN], current.share)
    except DocumentError as error:
        raise DeviceError(
            f"the device sent an invalid message: {error}", fix="run edgekit doctor; try again"
        ) from error
    except LostDeviceError as error:
        error.measured = so_far
        raise
    raise LostDeviceError(
        "the measuring process ended without a result",
        fix="run edgekit doctor; its last output is above",
        measured=so_far,
    )


def parse_message(line: str) -> dict[str, object]:
    """Parse a message of the agent; {} for other output, such as that of a login script."""
    if line.count("[") + line.count("{") > _MAX_PARTS:
        return {}
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _print(message: Message) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    with ended_by_signals():
        run_and_report(Path(sys.argv[1]), _print)
