"""Results as text: Markdown tables and a CSV of everything."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mjx_qflex import files
from mjx_qflex.benchmarking import cases, machine
from mjx_qflex.benchmarking.comparisons import KINDS
from mjx_qflex.errors import UserError
from mjx_qflex.runner.metrics import duration, number

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


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns a Markdown table."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def as_markdown(results: Results) -> str:
    """Returns all tables of one file of results."""
    lines = [f"    {results['command']}", "", _where(results), ""]
    warnings = machine.warnings(results["quiet"])
    lines += [f"**Not quiet:** {line}." for line in warnings]
    if warnings:
        lines.append("")
    if results["cases"]:
        sections = (_speeds, _shares, _updates, _roofline)
        for section in sections:
            lines += [*section(results), ""]
    if results["comparisons"]:
        lines += [*_comparisons(results["comparisons"]), ""]
    return "\n".join(lines)


def _where(results: Results) -> str:
    machine, quiet = results["machine"], results["quiet"]
    versions = ", ".join(f"{name} {text}" for name, text in machine["versions"].items())
    device = "" if machine["platform"] == "cpu" else f"{machine['devices']} x {machine['device']}, "
    return (
        f"{results['created']}, {duration(quiet['seconds'])}; {device}{machine['cores']} cores of "
        f"{machine['cpu']}, {machine['memory_gib']:.0f} GiB; load average before: "
        f"{quiet['load_average_before']:.2f}, cores used by others meanwhile: "
        f"{quiet['cores_used_by_others']:.2f}, stolen by the host: "
        f"{quiet['cores_stolen_by_the_host']:.2f}. Python {machine['python']}, {versions}; commit "
        f"{machine['commit']}. Medians of {results['budget']['repeats']} rounds; in brackets the "
        "lowest and highest."
    )


def _with_range(values: dict[str, float]) -> str:
    low, high = number(values["low"]), number(values["high"])
    return f"{number(values['median'])} ({low} to {high})"


def _named(case: dict[str, Any]) -> list[str]:
    return [f"`{case['task']}`", case["algo"], f"{case['num_envs']:,}"]


NAMED = ("task", "algorithm", "environments")


def _speeds(results: Results) -> list[str]:
    header = [*NAMED, "updates a step", *RATES.values(), "act on one (ms)", "peak GiB", "compile s"]
    rows = []
    for case in results["cases"]:
        rates = [_with_range(case[name]) if name in case else "-" for name in RATES]
        latency = {k: 1e3 * case["acting_latency_s"][k] for k in ("median", "low", "high")}
        compiled = sum(case["compile_seconds"][name] for name in ("init", "epoch"))
        updates = f"{case['updates_per_step']} of {case['batch_size']:,}"
        rest = [_with_range(latency), f"{case['peak_memory_gib']:.2f}", f"{compiled:.1f}"]
        rows.append([*_named(case), updates, *rates, *rest])
    return table(header, rows)


def _shares(results: Results) -> list[str]:
    rows = [
        [
            *_named(case),
            *(f"{100 * case['shares'][name]:.1f}%" for name in cases.SHARES),
            f"{case['parts_over_step']:.2f}",
        ]
        for case in results["cases"]
    ]
    intro = (
        'Shares of the training step. Each part is timed by itself; "rest" is what the whole step '
        "takes besides, and where the parts come to more than the step (last column above 1) "
        "shares are of their sum."
    )
    return [intro, "", *table((*NAMED, *cases.SHARES, "parts over step"), rows)]


def _updates(results: Results) -> list[str]:
    batches = sorted({int(b) for case in results["cases"] for b in case["updates_per_s"]})
    rows = []
    for case in results["cases"]:
        found = case["updates_per_s"]
        cells = [_with_range(found[str(b)]) if str(b) in found else "-" for b in batches]
        rows.append([*_named(case), f"{case['width']:,}", *cells])
    header = [*NAMED, "width", *(f"updates/s, batch {batch:,}" for batch in batches)]
    return table(header, rows)


def _roofline(results: Results) -> list[str]:
    peaks = _peaks(results["peaks"])
    rows = []
    for case in results["cases"]:
        for part, flops in case["flops"].items():
            seconds = case["parts_s"][part]
            rate = 1e-12 * flops["products"] / seconds
            rows.append(
                [
                    *_named(case), part, number(1e-9 * flops["products"]),
                    number(1e-9 * flops["others"]), number(1e3 * seconds), number(rate),
                    *(f"{100 * rate / peak:.1f}%" for peak in peaks.values()),
                ]
            )  # fmt: skip
    titles = ("part", "GFLOP in products", "in others", "ms", "TFLOP/s in products")
    given = ", ".join(f"{name} {number(peak)}" for name, peak in peaks.items())
    intro = f"Roofline of a vector step's parts. Peaks (TFLOP/s): {given}."
    header = (*NAMED, *titles, *(f"of {name}" for name in peaks))
    return [intro, "", *table(header, rows)]


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


def _comparisons(found: Sequence[dict[str, Any]]) -> list[str]:
    header = ("what", *NAMED, "updates a step", "cores", "quantity", "ours", "peer", "peer's")
    rows = []
    for one in found:
        kind = KINDS[one["kind"]]
        start = [
            one["title"], *_named(one), f"{one['updates_per_step']} of {one['batch_size']:,}",
            str(one["cores"] or "all"),
        ]  # fmt: skip
        for peer, quantities in one["ratios"].items():
            for quantity, ratio in quantities.items():
                if one["kind"] in ("brax", "host") and quantity == "updates/s":
                    continue  # the same ratio again: updates per transition are equal
                mine, theirs = (
                    number(one["sides"][side]["rates"][quantity]["median"])
                    for side in (kind.ours, peer)
                )
                times = f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})"
                rows.append([*start, quantity, mine, kind.peers[peer], theirs, times])
        for side, reason in one["failed"].items():
            rows.append([*start, "-", "-", kind.peers.get(side, "ours"), reason, "-"])
    return table((*header, "ours over peer's"), rows)


def write_csv(results: Results, path: Path) -> None:
    """Writes every measured quantity as a row."""
    columns = [
        "kind", "task", "algo", "num_envs", "batch_size", "updates_per_step", "cores", "side",
        "quantity", "median", "low", "high", "repeats",
    ]  # fmt: skip
    with files.beside(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows_of(results):
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def rows_of(results: Results) -> list[dict[str, Any]]:
    """Returns every measured quantity with what it was measured on."""
    sizes = ("task", "algo", "num_envs", "batch_size", "updates_per_step")
    rows = []
    for case in results["cases"]:
        start = {"kind": "case", **{name: case[name] for name in sizes}, "side": "ours"}
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
            "kind": one["kind"], **{name: one[name] for name in sizes}, "cores": one["cores"]
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
