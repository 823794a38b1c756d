#!/usr/bin/env bash
# The README line of the paper's released code: a prompt for CIFAR-10 learned on MiniGPT-4 (learning rate 10, FCA 0.005,
# TSE 0.001, 1 epoch), measured on InstructBLIP and BLIP-2. One GPU; see docs/paper.md. Paths are taken from the environment:
#
#   MINIGPT4=weights/minigpt4 OUT=runs/paper/cifar10 examples/paper/reproduce.sh --seed 1
#
# Arguments go to examples/train.py. LIMIT=500 measures on the first 500 test images only.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python}
MINIGPT4=${MINIGPT4:-weights/minigpt4}
INSTRUCTBLIP=${INSTRUCTBLIP:-Salesforce/instructblip-vicuna-7b}
BLIP2=${BLIP2:-Salesforce/blip2-flan-t5-xl}
CLIP=${CLIP:-openai/clip-vit-base-patch32}
DTYPE=${DTYPE:-bfloat16}
DATA=${DATA:-}  # a local copy of CIFAR-10; by default it comes from the Hub
OUT=${OUT:-runs/paper/cifar10}
LIMIT=${LIMIT:-}

if [ ! -d "$MINIGPT4" ]; then
    echo "error: there is no model at $MINIGPT4: make it with \`transferable-vp convert minigpt4\`, or set MINIGPT4." >&2
    exit 1
fi

"$PYTHON" examples/train.py examples/paper/cifar10.yaml --model "$MINIGPT4" --target_model "$INSTRUCTBLIP" "$BLIP2" \
    --clip_model "$CLIP" --dtype "$DTYPE" ${DATA:+--dataset "$DATA"} --output_dir "$OUT" \
    ${LIMIT:+--eval_split "test[:$LIMIT]"} "$@"

"$PYTHON" examples/paper/verify_released_prompt.py --prompt "$OUT" --model "$MINIGPT4" "$INSTRUCTBLIP" "$BLIP2" \
    --source "$(basename "$MINIGPT4")" --dtype "$DTYPE" ${DATA:+--dataset "$DATA"} ${LIMIT:+--limit "$LIMIT"} \
    --output_dir "$OUT/report"
