#!/usr/bin/env bash
# The lowest versions that pyproject.toml allows, of every extra but TensorRT's, run the four commands.
set -euo pipefail
uv=$1; shift
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git -C "$root" ls-files -z | (cd "$root" && xargs -0 cp --parents -t "$work")
for version in "$@"; do
    # uv does not look into pyenv, where the version that is asked for need not be the one in use
    if pyenv=$(pyenv prefix "$version" 2>/dev/null); then python=$pyenv/bin/python; else python=$version; fi
    if ! "$uv" venv --quiet --no-python-downloads --python "$python" "$work/$version" 2>/dev/null; then
        echo "lowest: no Python $version here, passed over" >&2
        continue
    fi
    "$uv" pip install --quiet --python "$work/$version/bin/python" --resolution lowest-direct \
        "$work[train,sign,phone,timm]"
    mkdir "$work/$version/run" && cd "$work/$version/run"
    for command in "train --set train.epochs=2" "export --format onnx" quantize "validate --seconds 1"; do
        # shellcheck disable=SC2086 # its words are meant
        "$work/$version/bin/edgekit" $command
    done
    cd / && rm -rf "${work:?}/$version"
    echo "lowest: Python $version ran the four commands"
done
