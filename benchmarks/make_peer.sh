#!/usr/bin/env bash
# Make ROOT/.peer, the environment of the public peer: PyPI's yolov5 7.0.14, a yardstick to run beside us.
# GPL and AGPL packages: nothing of it gets into our requirements or images, and nobody reads its source.
# Does nothing where a whole one of the same releases stands; what is half made or of other releases is made anew.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
peer=$root/.peer
python=${PYTHON:-python3}

# torch and torchvision are a matching pair of one index; the others are what yolov5 7.0.14 still runs with.
packages=('yolov5==7.0.14' 'numpy<2' 'setuptools<81' 'pillow<10' 'torch==2.14.1' 'torchvision==0.29.1')
# Only for its export and its validation of .onnx files, and without what they ask for: numpy has to stay below 2.
# Without onnxscript and onnx_ir torch 2.14's default exporter, which the peer calls, stops.
onnx_packages=(onnx onnxruntime onnxslim ml_dtypes flatbuffers onnxscript onnx_ir)
recipe="${packages[*]} ${onnx_packages[*]}"

exec 9<"${BASH_SOURCE[0]}"
flock 9 # of two callers at once the second waits, and then finds it made

if [ "$(cat "$peer/made" 2>/dev/null)" = "$recipe" ]; then
    exit 0
fi

rm -rf "$peer"
"$python" -m venv "$peer"
"$peer/bin/pip" install -qq "${packages[@]}"
"$peer/bin/pip" install -qq --no-deps "${onnx_packages[@]}"

# Its config folder, with the font that it would otherwise fetch.
mkdir "$peer/cfg"
cp "$peer"/lib/python3.*/site-packages/matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf "$peer/cfg/Arial.ttf"

printf '%s\n' "$recipe" >"$peer/made" # last of all: whoever sees it sees a whole environment
