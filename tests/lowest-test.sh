#!/usr/bin/env bash
# Run the four commands with the lowest versions that pyproject.toml allows, for every extra but TensorRT's.
set -euo pipefail
uv=$1; shift
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git -C "$root" ls-files -z | (cd "$root" && xargs -0 cp --parents -t "$work")
for version in "$@"; do
    # uv does not search pyenv, whose active version may be another one
    if pyenv=$(pyenv prefix "$version" 2>/dev/null); then python=$pyenv/bin/python; else python=$version; fi
    if ! "$uv" venv --quiet --no-python-downloads --python "$python" "$work/$version" 2>/dev/null; then
        echo "lowest: skipped Python $version: not installed" >&2
        continue
    fi
    "$uv" pip install --quiet --python "$work/$version/bin/python" --resolution lowest-direct \
        "$work[train,sign,phone,timm]"
    mkdir "$work/$version/run" && cd "$work/$version/run"
    for command in "train --set train.epochs=2" "export --format onnx" quantize "validate --seconds 1"; do
        # shellcheck disable=SC2086 # word splitting is intended
        "$work/$version/bin/edgekit" $command
    done
    cd / && rm -rf "${work:?}/$version"
    echo "lowest: Python $version ran the four commands"
done
