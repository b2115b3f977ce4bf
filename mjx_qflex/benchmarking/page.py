"""Results as text: Markdown tables and a CSV of everything."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from mjx_qflex import files
from mjx_qflex.benchmarking import cases, machine
from mjx_qflex.benchmarking.comparisons import KINDS
from mjx_qflex.errors import UserError
from mjx_qflex.reports import templates
from mjx_qflex.runner.metrics import number

FILE_NAME = "results.json"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
Results = dict[str, Any]
RATES = {
    "physics_steps_per_s": "physics steps/s",
    "control_steps_per_s": "control steps/s",
    "transitions_per_s": "training: transitions/s",
    "trained_updates_per_s": "updates/s",
    "added_transitions_per_s": "replay: added/s",
    "sampled_transitions_per_s": "sampled/s",
}
COMPARED = ("quantity", "ours", "peer", "peer's", "ours over peer's")
SIZES = ["task", "algo", "num_envs", "batch_size", "updates_per_step"]
COLUMNS = ["kind", *SIZES, "cores", "side", "quantity", "median", "low", "high", "repeats"]


def as_markdown(results: Results) -> str:
    """Returns all tables of one file of results."""
    found = {}
    if results["cases"]:
        peaks = _peaks(results["peaks"])
        found = {
            "speeds": _table(results, _speed),
            "shares": _table(results, _shares),
            "updates": _updates(results),
            "roofline": pd.DataFrame(
                _roofline(case, part, peaks) for case in results["cases"] for part in case["flops"]
            ),
            "peaks": peaks,
        }
    if results["comparisons"]:
        rows = [row for one in results["comparisons"] for row in _comparison(one)]
        found["comparisons"] = pd.DataFrame(rows)
    warnings = machine.warnings(results["quiet"])
    return templates.render("benchmark.md", results=results, warnings=warnings, **found)


def _table(results: Results, row: Callable[[dict[str, Any]], dict[str, Any]]) -> pd.DataFrame:
    """Returns the table with a row of each case; a share is called `task`, too."""
    columns = (pd.DataFrame(map(of, results["cases"])) for of in (_named, row))
    return pd.concat(list(columns), axis=1)


def _with_range(values: dict[str, float]) -> str:
    low, high = number(values["low"]), number(values["high"])
    return f"{number(values['median'])} ({low} to {high})"


def _named(case: dict[str, Any]) -> dict[str, str]:
    names = {"task": f"`{case['task']}`", "algorithm": case["algo"]}
    return names | {"environments": f"{case['num_envs']:,}"}


def _updates_a_step(case: dict[str, Any]) -> dict[str, str]:
    return {"updates a step": f"{case['updates_per_step']} of {case['batch_size']:,}"}


def _speed(case: dict[str, Any]) -> dict[str, str]:
    latency = {k: 1e3 * case["acting_latency_s"][k] for k in ("median", "low", "high")}
    compiled = sum(case["compile_seconds"][name] for name in ("init", "epoch"))
    return {
        **_updates_a_step(case),
        **{t: _with_range(case[name]) if name in case else "-" for name, t in RATES.items()},
        "act on one (ms)": _with_range(latency),
        "peak GiB": f"{case['peak_memory_gib']:.2f}",
        "compile s": f"{compiled:.1f}",
    }


def _shares(case: dict[str, Any]) -> dict[str, str]:
    found = {name: f"{100 * case['shares'][name]:.1f}%" for name in cases.SHARES}
    return found | {"parts over step": f"{case['parts_over_step']:.2f}"}


def _updates(results: Results) -> pd.DataFrame:
    rates = pd.DataFrame([case["updates_per_s"] for case in results["cases"]])
    rates = rates.map(_with_range, na_action="ignore").fillna("-")
    rates = rates[sorted(rates, key=int)]
    rates.columns = [f"updates/s, batch {int(batch):,}" for batch in rates]
    named = _table(results, lambda case: {"width": f"{case['width']:,}"})
    return pd.concat([named, rates], axis=1)


def _roofline(case: dict[str, Any], part: str, peaks: dict[str, float]) -> dict[str, str]:
    flops, seconds = case["flops"][part], case["parts_s"][part]
    rate = 1e-12 * flops["products"] / seconds
    return {
        **_named(case),
        "part": part,
        "GFLOP in products": number(1e-9 * flops["products"]),
        "in others": number(1e-9 * flops["others"]),
        "ms": number(1e3 * seconds),
        "TFLOP/s in products": number(rate),
        **{f"of {name}": f"{100 * rate / peak:.1f}%" for name, peak in peaks.items()},
    }


def _peaks(peaks: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Returns TFLOP/s by name, those of memory left out."""
    named = {"given": "--peak_tflops"} if "tflops" in peaks["given"] else {}
    found = {title: peaks[name]["tflops"] for name, title in named.items()}
    for kind in ("float32", "tf32", "bfloat16"):
        if kind in peaks["datasheet"]:
            found[f"datasheet {kind}"] = peaks["datasheet"][kind]
        if f"{kind}_tflops" in peaks["attained_here"]:
            found[f"{kind} product here"] = peaks["attained_here"][f"{kind}_tflops"]
    return found


def _comparison(one: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Yields a row for each quantity of each peer, and one for each side that failed."""
    kind = KINDS[one["kind"]]
    start = {"what": one["title"], **_named(one), **_updates_a_step(one)}
    start |= {"cores": str(one["cores"] or "all")}
    for peer, quantities in one["ratios"].items():
        for quantity, ratio in quantities.items():
            if one["kind"] in ("brax", "host") and quantity == "updates/s":
                continue  # the same ratio again: updates per transition are equal
            mine, theirs = (
                number(one["sides"][side]["rates"][quantity]["median"])
                for side in (kind.ours, peer)
            )
            times = f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})"
            cells = (quantity, mine, kind.peers[peer], theirs, times)
            yield start | dict(zip(COMPARED, cells, strict=True))
    for side, reason in one["failed"].items():
        failed = ("-", "-", kind.peers.get(side, "ours"), reason, "-")
        yield start | dict(zip(COMPARED, failed, strict=True))


def write_csv(results: Results, path: Path) -> None:
    """Writes every measured quantity as a row."""
    table = pd.DataFrame(rows_of(results), columns=COLUMNS).convert_dtypes(convert_floating=False)
    with files.beside(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def rows_of(results: Results) -> list[dict[str, Any]]:
    """Returns every measured quantity with what it was measured on."""
    rows = []
    for case in results["cases"]:
        start = {"kind": "case", **{name: case[name] for name in SIZES}, "side": "ours"}
        for name in (*RATES, "acting_latency_s"):
            if name in case:
                rows.append({**start, "quantity": name, **case[name]})
        for batch, rate in case["updates_per_s"].items():
            rows.append({**start, "quantity": f"updates_per_s at batch {batch}", **rate})
        for name, share in case["shares"].items():
            rows.append({**start, "quantity": f"share: {name}", "median": share})
        rows.append({**start, "quantity": "peak GiB", "median": case["peak_memory_gib"]})
    for one in results["comparisons"]:
        start = {
            "kind": one["kind"], **{name: one[name] for name in SIZES}, "cores": one["cores"]
        }  # fmt: skip
        for side, found in one["sides"].items():
            for quantity, rate in found["rates"].items():
                rows.append({**start, "side": side, "quantity": quantity, **rate})
        for peer, quantities in one["ratios"].items():
            for quantity, ratio in quantities.items():
                rows.append({**start, "side": peer, "quantity": f"ratio: {quantity}", **ratio})
    return rows


def read(folder: Path) -> list[Results]:
    """Returns the results in `folder` and in folders inside it.

    Raises:
      UserError: there are none, or one cannot be read.
    """
    paths = sorted(folder.rglob(FILE_NAME))
    if not paths:
        raise UserError(f"no {FILE_NAME} in {folder}; measure with --output={folder}")
    found = []
    for path in paths:
        found.append({"name": path.parent.name, **files.read_json(path, "measure again")})
    return found


def tables(folder: Path) -> str:
    """Returns the tables of all results in `folder`; its README.md gets them between the marks.

    Raises:
      UserError: there are no results, or some are damaged.
    """
    found = []
    for results in read(folder):
        try:
            found.append(f"## {results['name']}\n\n{as_markdown(results)}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            path = folder / results["name"] / FILE_NAME
            raise files.damaged(path, files.reason(error), "measure again") from error
    text = "\n".join(found)
    page = folder / "README.md"
    old = page.read_text() if page.exists() else ""
    if BEGIN in old and END in old:
        before, after = old.split(BEGIN)[0], old.split(END)[1]
        files.write(page, f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    return text
