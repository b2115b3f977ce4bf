"""A process that runs one side of a comparison: `python -m mjx_qflex.benchmarking.worker SPEC`.

It answers each line on its standard input with a round of measurement, one line of JSON. The
number of cores is set before JAX and MuJoCo make their threads.
"""

import json
import os
import sys


def main() -> None:
    from mjx_qflex.benchmarking.channel import Channel

    spec = json.loads(sys.argv[1])
    if spec["cores"] is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec["cores"]])
    channel = Channel()
    from mjx_qflex.benchmarking import sides

    sides.serve(sides.Spec.from_json(spec), channel)


if __name__ == "__main__":
    main()
