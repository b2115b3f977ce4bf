"""The page that compares runs: groups, numbers, differences, broken folders, well-formed HTML."""

import csv
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mjx_qflex import config as configs
from mjx_qflex import presets, report
from mjx_qflex.reports import comparison, page, statistics

FINALS = (10.0, 14.0, 30.0, 20.0, 12.0)  # returns of seeds 0, 1, ...


def write_run(folder, seed=0, final=10.0, sets=(), algo="qflex", task="chain_reach"):
    """Writes what a run leaves, without the run."""
    folder.mkdir(parents=True)
    config = presets.resolve(task, algo, preset="cpu", seed=seed, sets=sets)
    configs.save(config, folder)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = (
            "transitions", "seconds", "steps_per_second", "updates_per_second",
            "episode/return", "episode/length", "evaluation/return", "evaluation/length",
        )  # fmt: skip
        writer.writerow(columns)
        for epoch in range(1, 7):
            evaluation = (final, 20.0) if epoch == 6 else ("", "")
            row = (100 * epoch, 2.0 * epoch, 50 + epoch, 5, final * epoch / 6, 20, *evaluation)
            writer.writerow(row)
    trained = {"return_mean": final, "length_mean": 20.0 + seed, "returns": [final] * 4}
    (folder / "evaluation.json").write_text(json.dumps({"policies": {"trained": trained}}))
    return folder


def five_seeds(tmp_path):
    return [write_run(tmp_path / f"s{seed}", seed, value) for seed, value in enumerate(FINALS)]


def read(folders):
    return comparison.group([comparison.read_run(folder) for folder in folders])


def make_page(tmp_path, folders, *flags):
    """Runs the command; returns the page as a tree, which fails where a tag is left open."""
    output = tmp_path / "page.html"
    assert report.main([*map(str, folders), f"--output={output}", *flags]) == 0
    text = output.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(text.partition("\n")[2]), text


def rows(tree):
    """Returns the rows of all tables as strings."""
    return [
        ["".join(cell.itertext()) for cell in row] for row in tree.iter("tr")
    ]  # fmt: skip


def row_of(tree, first):
    return next(row for row in rows(tree) if row[0] == first)


def test_runs_that_differ_in_their_seed_only_form_a_group(tmp_path):
    folders = [
        *five_seeds(tmp_path)[::-1],
        # A slow machine made this one's epochs shorter: the same experiment.
        write_run(tmp_path / "slow", seed=7, sets=["loop.steps_per_epoch=3"]),
        write_run(tmp_path / "eta", sets=["algo.ascent_step_size=0.5"]),
        write_run(tmp_path / "sac", algo="sac"),
        write_run(tmp_path / "long", sets=["task.num_joints=100"]),
    ]
    groups = read(folders)
    found = {(item.problem, item.name): [run.seed for run in item.runs] for item in groups}
    short, long = "chain_reach, task.num_joints=8", "chain_reach, task.num_joints=100"
    assert found == {
        (short, "qflex, algo.ascent_step_size=0.01"): [0, 1, 2, 3, 4, 7],
        (short, "qflex, algo.ascent_step_size=0.5"): [0],
        (short, "sac"): [0],
        (long, "qflex"): [0],
    }


def test_names_differ_even_where_the_first_options_agree(tmp_path):
    base = ["algo.width=8", "algo.depth=1"]
    changes = ["algo.gamma=0.9", "algo.gamma=0.8"]
    folders = [write_run(tmp_path / "plain")]
    folders += [write_run(tmp_path / text, sets=[*base, text]) for text in changes]
    assert [item.name for item in read(folders)] == [
        "qflex, algo.width=128, algo.depth=3, …",
        "qflex, algo.width=8, algo.depth=1, algo.gamma=0.9",
        "qflex, algo.width=8, algo.depth=1, algo.gamma=0.8",
    ]


def test_runs_without_a_config_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / name / "s0") for name in "ab"]
    for folder in folders:
        (folder / "config.json").unlink()
    assert [item.name for item in read(folders)] == ["s0", "s0 (2)"]


def test_estimates_over_seeds_are_numpys():
    values = np.random.default_rng(3).normal(size=(8, 2))
    ordered = np.sort(values, axis=0)
    iqm = statistics.over_seeds(values, "iqm")
    np.testing.assert_allclose(iqm.value, ordered[2:6].mean(axis=0))
    mean = statistics.over_seeds(values, "mean")
    np.testing.assert_allclose(mean.value, values.mean(axis=0))
    # All 8**8 resamples are too many; 200,000 of our own tell the percentiles to a few thousandths.
    drawn = np.random.default_rng(4).choice(values[:, 0], (200_000, 8)).mean(axis=1)
    np.testing.assert_allclose(
        [mean.low[0], mean.high[0]], np.percentile(drawn, (2.5, 97.5)), atol=0.05
    )


def test_one_seed_has_no_interval():
    value, low, high = statistics.over_seeds(np.array([[1.0, 2.0]]))
    assert list(value) == [1.0, 2.0]
    assert np.isnan(low).all() and np.isnan(high).all()


def test_bootstrap_intervals_cover_about_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(1.0, 2.0, (16, 500))
    found = statistics.over_seeds(draws)
    covered = np.mean((found.low < 1.0) & (found.high > 1.0))
    assert 0.89 < covered < 0.96


def test_probability_of_improvement_counts_pairs():
    """One task: of the pairs (1 or 4) against (0, 1, 2) 2 + 2 are won, one is a tie."""
    x, y = np.array([1.0, 4.0]), np.array([0.0, 1.0, 2.0])
    found = statistics.probability_of_improvement([x], [y])
    assert found.value == pytest.approx((1 + 0.5 + 0 + 3) / 6)
    back = statistics.probability_of_improvement([y], [x])
    assert back.value == pytest.approx(1 - found.value)
    # A second task where the first always loses: the mean of tasks, not of all pairs.
    twice = statistics.probability_of_improvement([x, y[:2]], [y, x[1:]])
    assert twice.value == pytest.approx((4.5 / 6 + 0) / 2)


def test_the_bootstrap_of_improvement_stays_within_its_task_and_algorithm():
    rng = np.random.default_rng(5)
    x, y = rng.normal(0.5, 1.0, 6), rng.normal(0.0, 1.0, 5)
    found = statistics.probability_of_improvement([x], [y])
    draws = [np.mean(rng.choice(x, 6)[:, None] > rng.choice(y, 5)[None]) for _ in range(20_000)]
    np.testing.assert_allclose(found[1:], np.percentile(draws, (2.5, 97.5)), atol=0.04)
    # Scales differ between tasks: mixing them would blur what is certain in each.
    sure = statistics.probability_of_improvement([x + 10, x + 1000], [y, y + 900])
    assert sure == (1.0, 1.0, 1.0)
    alone = statistics.probability_of_improvement([x[:1]], [y])
    assert np.isnan(alone.low) and np.isnan(alone.high)


def test_the_page_says_who_is_probably_better(tmp_path):
    folders = five_seeds(tmp_path)
    for seed, value in enumerate((11.0, 12.0)):
        folders.append(write_run(tmp_path / f"sac{seed}", seed, value, algo="sac"))
    for seed in range(2):
        for algo, value in (("qflex", 5.0), ("sac", 6.0)):
            sets = ["task.num_joints=100"]
            folder = tmp_path / f"long-{algo}{seed}"
            folders.append(write_run(folder, seed, value, sets, algo))
    tree, _ = make_page(tmp_path, folders)
    matrices = {
        "".join(node.find("summary").itertext()).rpartition(": ")[2]: rows(node)
        for node in tree.iter("details")
        if node.find("summary").text.startswith("Probability")
    }
    short, both = matrices["chain_reach, task.num_joints=8"], matrices["mean of 2 tasks"]
    # 10 loses to 11 and 12; 12 beats 11 and ties with 12; 14, 20 and 30 win.
    assert short[0] == ["probability [95%]", "qflex", "sac"]
    assert short[1][2].startswith("0.75 [") and short[2][1].startswith("0.25 [")
    assert short[1][1] == comparison.ABSENT
    assert both[1][2].startswith("0.375 [")


@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_the_table_holds_the_numbers(tmp_path, statistic):
    tree, _ = make_page(tmp_path, five_seeds(tmp_path), f"--statistic={statistic}")
    row = row_of(tree, "qflex")
    value = np.mean(FINALS) if statistic == "mean" else np.mean(sorted(FINALS)[1:-1])
    expected = statistics.over_seeds(np.array(FINALS), statistic)
    assert row[1] == "5"
    assert row[2] == f"{value:.4g} [{expected.low:.4g}, {expected.high:.4g}]"
    assert row[3].startswith("22 [")
    assert row[4:] == ["53.5", "5", "600", "12 s"]
    assert row_of(tree, "s2")[2:6] == ["2", "30", "22", "4 episodes at the end"]


def test_a_curve_is_the_mean_where_all_seeds_have_been(tmp_path):
    folders = [write_run(tmp_path / "a", 0, 6.0), write_run(tmp_path / "b", 1, 12.0)]
    lines = (folders[1] / "metrics.csv").read_text().splitlines(keepends=True)
    (folders[1] / "metrics.csv").write_text("".join([lines[0], *lines[2:5]]))  # 200 to 400
    (item,) = read(folders)
    places, estimate, seeds = comparison.curve(item, "episode/return", "transitions", "mean")
    assert list(places) == [200, 300, 400]
    np.testing.assert_allclose(estimate.value, [3.0, 4.5, 6.0])
    assert [len(seed) for seed in seeds] == [6, 3]


def test_only_settings_that_differ_are_listed(tmp_path):
    folders = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", seed=1, sets=["algo.width=8", "loop.batch_size=16"]),
    ]
    expected = configs.load(folders[0])
    found = comparison.differences([item.runs[0] for item in read(folders)])
    assert found.T.to_dict("list") == {
        "loop.batch_size": [str(expected.loop.batch_size), "16"],
        "algo.width": [str(expected.algo_config.width), "8"],
    }
    tree, _ = make_page(tmp_path, folders)
    assert row_of(tree, "algo.width")[2] == "8"
    assert not [row for row in rows(tree) if row[0] in ("seed", "algo.depth")]


def test_what_differs_between_tasks_is_listed_once(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "sac", algo="sac")]
    sets = ["task.num_joints=100", "loop.batch_size=16"]
    folders.append(write_run(tmp_path / "c", sets=sets))
    tree, _ = make_page(tmp_path, folders)
    found = [row for row in rows(tree) if row[0] in ("loop.batch_size", "task.num_joints")]
    assert sorted(row[0] for row in found) == ["loop.batch_size", "task.num_joints"]
    assert all(len(row) == 3 for row in found)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metrics.csv", "transitions,seconds\n100,oh no\n", "metrics.csv cannot be read"),
        ("metrics.csv", "transitions,seconds\n", "no whole row"),
        ("metrics.csv", "transitions,seconds\n100,2\n200", "ends within a line"),
        ("metrics.csv", None, "metrics.csv is missing"),
        ("evaluation.json", '{"policies": {"tra', "evaluation.json cannot be read"),
        ("evaluation.json", '{"policies": []}', "evaluation.json cannot be read"),
        ("evaluation.json", None, "evaluation.json is missing"),
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", None, "config.json is missing"),
        ("summary.json", "[]", "summary.json cannot be read"),
        ("video.mp4", "", "video.mp4 is empty"),
    ],
)
def test_a_broken_file_takes_one_line_and_the_rest_comes(tmp_path, capsys, name, content, says):
    whole, broken = write_run(tmp_path / "whole"), write_run(tmp_path / "broken", 1, 14.0)
    if content is None:
        (broken / name).unlink()
    else:
        (broken / name).write_text(content)
    tree, text = make_page(tmp_path, [whole, broken])
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {broken}: ") and err.count("\n") == 1
    assert says in err
    (note,) = tree.find("body/ul[@class='notes']")
    assert says in note.text
    assert row_of(tree, "whole")[3] == "10"
    assert [row for row in rows(tree) if row[0] == "broken"][-1][3] == "14"  # of "Each run"


def test_a_seed_that_is_there_twice_is_said(tmp_path, capsys):
    make_page(tmp_path, [write_run(tmp_path / "a"), write_run(tmp_path / "b")])
    assert "seed 0 is there 2 times" in capsys.readouterr().err
    tree, _ = make_page(tmp_path, [tmp_path / "a", tmp_path / "a"])
    assert row_of(tree, "qflex")[1] == "1"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flags", [["nowhere"], ["empty"], [], ["run", "--y=3"], ["run", "--x=up"]])
def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "run")
    assert report.main(flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    if flags and flags[0] != "run":
        assert f"{flags[0]} is no run" in err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("x", page.X_AXES)
def test_the_page_is_whole_and_needs_nothing_else(tmp_path, x):
    folders = [*five_seeds(tmp_path), write_run(tmp_path / "<b>&", algo="sac")]
    tree, text = make_page(tmp_path, folders, f"--x={x}")
    ids = [node.get("id") for node in tree.iter() if node.get("id")]
    assert len(set(ids)) == len(ids)
    for node in tree.iter():
        assert not node.tag.endswith(("script", "link", "iframe", "metadata"))
        for key, value in node.attrib.items():
            if key.endswith(("href", "src")):
                assert value.startswith("#") and value[1:] in ids
    assert "@import" not in text and page.INK not in text
    assert text.count("url(") == text.count("url(#")
    figures = [node for node in tree.iter() if node.tag.endswith("}svg")]
    assert len(figures) == 3
    assert any(page.X_AXES[x] in "".join(figure.itertext()) for figure in figures)


def test_more_groups_than_colours_can_be_told_apart(tmp_path):
    widths = range(4, 5 + len(page.COLOURS))
    folders = [write_run(tmp_path / f"{width}", sets=[f"algo.width={width}"]) for width in widths]
    tree, _ = make_page(tmp_path, folders)
    swatches = {node.get("style") for node in tree.iter("span") if node.get("class") == "swatch"}
    assert len(swatches) == len(folders)


def test_runs_of_a_sweep_are_told_apart_by_the_folders_above(tmp_path):
    folders = [
        write_run(tmp_path / "sweep" / algo / f"s{seed}", algo=algo, seed=seed)
        for algo in ("sac", "qflex")
        for seed in (0, 1)
    ]
    _, text = make_page(tmp_path, folders)
    for folder in folders:
        assert f">{folder.relative_to(tmp_path / 'sweep').as_posix()}<" in text
    _, text = make_page(tmp_path, folders[:1])
    assert ">s0<" in text


def test_small_videos_are_embedded_and_large_ones_linked(tmp_path, monkeypatch):
    folders = [write_run(tmp_path / "runs" / name, seed) for seed, name in enumerate("ab")]
    (folders[0] / "video.mp4").write_bytes(b"film")
    (folders[1] / "video.mp4").write_bytes(b"a longer film")
    monkeypatch.setattr(page, "EMBEDDED_BYTES", 8)
    tree, _ = make_page(tmp_path, folders)
    (video,) = tree.iter("video")
    assert video.get("src") == "data:video/mp4;base64,ZmlsbQ=="
    (link,) = tree.iter("a")
    assert link.get("href") == "runs/b/video.mp4"
