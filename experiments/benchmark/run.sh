#!/usr/bin/env bash
# Everything in this folder, on a CPU: 45 minutes on two quiet cores. A name runs that part alone:
#     experiments/benchmark/run.sh [parts|environments|brax|host|replay|physics ...]
# The accelerator's part: experiments/benchmark/run.sh gpu (writes the folder `gpu`).
set -euo pipefail
cd "$(dirname "$0")/../.."
here=experiments/benchmark
benchmark() { python -m mjx_qflex.benchmark "$@"; }

parts() {
    benchmark --task arm_reach myo_leg_walk ms_human_walk --algo sac qflex --preset=cpu \
        --batch_size 128 256 1024 --seconds=0.25 --output=$here/cpu_parts
}
environments() {
    benchmark --task=arm_reach --algo=sac --preset=cpu --num_envs 8 64 512 \
        --seconds=0.25 --output=$here/cpu_environments
}
brax() {
    benchmark --task arm_reach myo_leg_walk --algo=sac --preset=cpu --compare brax \
        --repeats=7 --output=$here/cpu_brax
}
host() {
    benchmark --task arm_reach myo_leg_walk ms_human_walk --algo=sac --preset=cpu \
        --num_envs 32 256 --compare host --cores 1 2 --output=$here/cpu_host
}
replay() {
    benchmark --task arm_reach ms_human_walk --algo=sac --preset=cpu --compare flashbax \
        --repeats=7 --output=$here/cpu_replay
}
physics() {
    benchmark --task arm_reach myo_leg_walk --preset=cpu --num_envs=32 --compare raw \
        --output=$here/cpu_physics
}
gpu() {
    benchmark --task=ms_human_walk --algo qflex sac --preset=gpu --num_envs 1024 4096 \
        --batch_size 256 4096 16384 --output=$here/gpu
    benchmark --task=ms_human_walk --algo=sac --preset=gpu --num_envs=4096 \
        --compare brax host flashbax --output=$here/gpu_compared
}

if [ $# -eq 0 ]; then set -- parts environments brax host replay physics; fi
for part in "$@"; do "$part"; done
python -m mjx_qflex.benchmark --table=$here > /dev/null
