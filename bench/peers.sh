#!/usr/bin/env bash
# Times vitc beside ONNX Runtime and OpenVINO, in turn, each in a process of its own.
#
#   bench/peers.sh MODEL.onnx [OPTIONS OF bench_peers.py]     say --threads 1 2 --batch 1 8 --out result.json
#
# VITC_SHARED names the folder with peers/bench_peers.py; PYTHON a Python with onnx, onnxruntime, openvino and nncf.
# TIER (default auto) is the tier that vitc runs on. Calibration is on seeded noise: the timing is right, the accuracy
# means nothing.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
model="$(realpath "${1:?usage: bench/peers.sh MODEL.onnx [options]}")"
shift
shared="${VITC_SHARED:-$here/../shared}"
python="${PYTHON:-python3}"
tier="${TIER:-auto}"
cargo build --release --quiet --manifest-path "$here/Cargo.toml" -p vitc
vitc="$here/target/release/vitc"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$vitc" compile "$model" --calibrate synthetic -o "$work/model.vitc" >/dev/null
"$python" "$shared/peers/bench_peers.py" "$model" \
  --extern "vitc=$vitc bench $work/model.vitc --tier $tier --batch {batch} --threads {threads} --worker" "$@"
