"""Compare EdgeKit's latency with the methods of other tools, for one model on one machine.

    python benchmarks/agreement.py BUNDLE... [--threads 1 2] [--repeats 6] [--seconds 4]

Each BUNDLE is an ONNX bundle. In every repeat the three methods take turns, each in fresh processes, on ONNX Runtime
with the same session options:

- perf_test: like onnxruntime_perf_test: one random input, one untimed call, the median of the rest;
- benchmark_app: like OpenVINO's benchmark_app with `-api sync`: one request, random data, one untimed call, the median
  of the calls in a fixed time (only its method: its runtime would have another speed);
- EdgeKit: the p50 of `validate`.

Prints one row per model and thread count: the medians, and the ratio of EdgeKit's to each peer's with Student's 95 %
interval.
"""

import argparse
import math
import random
import subprocess
import sys

import numpy as np
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.environment import describe
from edgekit.deploy.measuring.plan import Plan
from edgekit.deploy.progress import silent
from edgekit.toolkit.analysis.statistics import exponential, student_mean

PEER = """
import sys, time
import numpy as np, onnxruntime
method, path, threads, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
entry = session.get_inputs()[0]
data = np.random.default_rng(0).random([d if isinstance(d, int) else 1 for d in entry.shape], np.float32)
feed = {entry.name: data}
session.run(None, feed)
times, end = [], time.perf_counter() + seconds
if method == "perf_test":
    start = time.perf_counter()
    session.run(None, feed)
    for _ in range(max(20, int(seconds / (time.perf_counter() - start)))):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
else:
    while time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
print(1e3 * float(np.median(times)))
"""


def _peer(method: str, bundle: Bundle, threads: int, seconds: float) -> float:
    arguments = [method, str(bundle.model_path), str(threads), str(seconds)]
    done = subprocess.run([sys.executable, "-c", PEER, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout)


def _edgekit(bundle: Bundle, threads: int, seconds: float, seed: int) -> float:
    plan = Plan(seconds=seconds, processes=3, threads=threads, seed=seed)
    (measurement,) = open_device("local").measure([bundle], plan, None, silent).measurements
    return float(np.median([value for block in measurement.blocks for value in block.call_ms]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores_allowed']} cores allowed, {machine['system']}, {machine['versions']}\n")
    print("| model | threads | perf_test | benchmark_app | EdgeKit | over perf_test | over benchmark_app |")
    print("|---|---|---|---|---|---|---|")
    for path in arguments.bundles:
        bundle = Bundle.open(path)
        for threads in arguments.threads:
            times: dict[str, list[float]] = {"perf_test": [], "benchmark_app": [], "edgekit": []}
            for repeat in range(arguments.repeats):
                for method in random.Random(repeat).sample(list(times), len(times)):
                    if method == "edgekit":
                        times[method].append(_edgekit(bundle, threads, arguments.seconds, repeat))
                    else:
                        times[method].append(_peer(method, bundle, threads, arguments.seconds))
            cells = [f"{np.median(values):.4g} ms" for values in times.values()]
            for peer in ("perf_test", "benchmark_app"):
                logs = [math.log(own / other) for own, other in zip(times["edgekit"], times[peer], strict=True)]
                ratio = exponential(student_mean(logs))
                cells.append(f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]")
            print(
                f"| {bundle.manifest.name} {bundle.manifest.precision} | {threads} | {' | '.join(cells)} |", flush=True
            )


if __name__ == "__main__":
    main()
