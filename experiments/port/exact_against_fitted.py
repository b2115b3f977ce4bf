"""Physics steps/s with exact and with fitted muscle paths, of the bodies that have fits.

python experiments/port/exact_against_fitted.py
"""

import dataclasses

from mjx_qflex import porting
from mjx_qflex.porting import speed, tendons

for name, batch in (("myo_legs", 64), ("ms_human", 32)):
    fitted = porting.load(name)
    paths = tendons.from_model(fitted.source, fitted.tree, range(fitted.nu))
    exact = dataclasses.replace(fitted, path_groups=(), tendons=paths)
    for kind, body in (("fitted", fitted), ("exact", exact)) * 2:
        rate = speed.measure_port(body, batch)["steps/s"]
        print(f"{name}, {batch} worlds, {kind} paths: {rate:,.0f} physics steps/s", flush=True)
