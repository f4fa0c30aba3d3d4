#!/usr/bin/env bash
# The wheel contains the expected files, and its device install validates a bundle without torch.
set -euo pipefail
python=$1
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git -C "$root" ls-files -z | (cd "$root" && xargs -0 cp --parents -t "$work")
# downloaded files that git does not track; a wheel includes them if they are present
ort_web=deploy/devices/browser/ort-web
[ ! -d "$root/$ort_web" ] || cp -r "$root/$ort_web" "$work/$ort_web"
"$python" -m build --wheel --outdir "$work/dist" "$work" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$python" "$root/tests/wheel_contents.py" "$work"/dist/*.whl

"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" "$work"/dist/*.whl
"$work/venv/bin/python" -c "import importlib.util as u; assert not u.find_spec('torch') and not u.find_spec('onnx')"
cp -r "$root/tests/data" "$work/bundles"
cd "$work"
"$work/venv/bin/edgekit" doctor
"$work/venv/bin/edgekit" validate bundles/lenet-int8 --seconds 2 --out report
test -s report/report.json && test -s report/report.html && test -s report/junit.xml
"$work/venv/bin/edgekit" predict bundles/lenet-int8 digits --csv out.csv >/dev/null
test "$(wc -l <out.csv)" = 360
if "$work/venv/bin/edgekit" train 2>message; then exit 1; fi
grep -q "pip install 'edgekit-vision\[train\]'" message
echo "wheel: validated without torch"
