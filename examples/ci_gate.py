"""A gate for CI: compare a branch's report with the main branch's, without measuring.

    python examples/ci_gate.py main/report.json branch/report.json

Writes `summary.md` and `junit.xml`. Exits with 0 if the branch is at least 95 % as fast and its accuracy has not
certainly dropped. Exits with 0 and a warning if that cannot be decided. Otherwise it exits as `edgekit report` does.
"""

import subprocess
import sys

UNDECIDED = 4


def main(before: str, after: str) -> int:
    """Run the comparison and translate its exit code."""
    command = [
        *(sys.executable, "-m", "edgekit", "report", before, after),
        *("--min-speedup", "0.95", "--markdown", "summary.md", "--junit", "junit.xml"),
    ]
    code = subprocess.run(command, check=False).returncode
    if code == UNDECIDED:
        print("warning: the reports cannot decide; measure longer (--seconds), or on more images", file=sys.stderr)
        return 0
    return code


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/ci_gate.py MAIN_REPORT BRANCH_REPORT")
    sys.exit(main(*sys.argv[1:]))
