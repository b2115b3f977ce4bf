"""Bad inputs by the hundred: each takes one line, none a traceback, and none writes anything."""

import json
import random
import shutil

import pytest
from test_motion_files import RUN, human, recorded_run, write_bvh

from mjx_qflex import benchmark, evaluate, presets, report, sweep, train
from mjx_qflex import config as configs
from mjx_qflex.errors import UserError
from mjx_qflex.motions import __main__ as motions
from mjx_qflex.motions import library, recordings
from mjx_qflex.runner import assessment, checkpoint, inputs, metrics, run_folder

CHAIN = "--task=chain_reach"
ODD = (
    "",
    " ",
    "nan",
    "1e30",
    "-1",
    "0x10",
    "1_0_",
    "١٢",
    "１",
    "1,2",
    "None",
    "[]",
    "\n",
    "é",
    "%s",
)
NUMBERS = ("num_envs", "total_steps", "seed", "seeds", "seeds_at_once", "devices")
TRAIN = [
    *([CHAIN, f"--{flag}={odd}"] for flag in NUMBERS for odd in ODD if odd not in ("１", "١٢")),
    *(
        [f"--{flag}={odd}"]
        for flag in ("task", "algo", "preset")
        for odd in ("x y", "../a", "é", "")
    ),
    *([CHAIN, f"--set={odd}"] for odd in ("=", "a=", "=1", "loop.=1", ".=1", "loop..x=1", "loop")),
    *([CHAIN, f"--set=algo.width={odd}"] for odd in ODD if odd not in ("１", "١٢")),
    *([CHAIN, f"--set=algo.learning_rate={odd}"] for odd in ODD if odd not in ("0x10", "１", "١٢")),
    *([CHAIN, f"--set=algo.gradient={odd}"] for odd in ODD),
    *([CHAIN, f"--set=loop.matmul_precision={odd}"] for odd in ODD),
    [CHAIN, "--algo=sac", "--set=algo.log_std_range=2,-20"],
    [CHAIN, "--algo=sac", "--set=algo.log_std_range=1"],
    [CHAIN, "--algo=sac", "--set=algo.log_std_range=nan,1"],
    [CHAIN, "--algo=ppo", "--set=loop.batch_size=7"],
    [CHAIN, "--algo=ppo", "--seeds=2", "--seeds_at_once=2"],
    [CHAIN, "--set=loop.prefill_transitions=300000"],
    [CHAIN, "--set=total_steps=2560"],
    [CHAIN, "--set", "loop.replay_capacity=100"],
    [CHAIN, "--devices=7"],
    [CHAIN, "--coordinator=a:1"],
    [CHAIN, "--num_processes=2"],
    [CHAIN, "--coordinator=a:1", "--num_processes=2", "--process_id=2"],
    [CHAIN, "--coordinator=a", "--num_processes=2", "--process_id=0"],
    [CHAIN, "--body=arm"],
    [CHAIN, "--no-video=1"],
    [CHAIN, "--help=1"],
    [CHAIN, "-h"],
    [CHAIN, "--"],
    [CHAIN, "extra"],
    [CHAIN, "--set"],
    ["--task=ms_human_walk", "--body=../../etc"],
    ["--task=ms_human_walk", "--set=task.motion=none.csv"],
    ["--task=ms_human_walk", "--set=task.motion=/dev/null"],
    ["--task=ms_human_walk", "--set=task.motion=walk"],
    ["--task=ms_human_walk", "--set=task.num_actuators=0"],
    ["--task=ms_human_walk", "--set=task.reward_set=none"],
]
EVALUATE = [
    [],
    ["--run=none"],
    ["--run=/dev/null"],
    ["--run=" + "x" * 300],
    ["--run=a\0b"],
    *(["--run=none", f"--episodes={odd}"] for odd in (*ODD[:10], "1", "0")),
    *(["--run=none", f"--seed={odd}"] for odd in (*ODD[:7], "4294967296", "-0.5")),
    *(["--run=none", "--guidance", odd] for odd in ("nan", "inf", "-1", "much", "1e30", "")),
    *(["--run=none", "--guidance=1", f"--best_of={odd}"] for odd in ("0", "1e9", "-1", "x")),
    ["--run=none", "--guidance=1", "--guidance_grid=up"],
]
BENCHMARK = [
    [],
    ["--task"],
    ["--task=x"],
    ["--table=none"],
    ["--table=/dev/null"],
    [CHAIN, "--compare", "nobody"],
    [CHAIN, "--cores", "1"],
    [CHAIN, "--compare", "--cores", "9999"],
    *([CHAIN, f"--{flag}={odd}"] for flag in ("seconds", "limit", "repeats") for odd in ODD[:5]),
    *([CHAIN, f"--batch_size={odd}"] for odd in ODD[:5]),
    [CHAIN, "--peak_tflops=0"],
    [CHAIN, "--peak_tflops=inf"],
    [CHAIN, "--output=/dev/null"],
]
MOTIONS = [
    [],
    ["--show=walk", "--retarget=a.csv"],
    ["--show=nothing"],
    ["--show=none.csv"],
    ["--retarget=none.bvh"],
    ["--retarget=/dev/null"],
    ["--retarget=run.csv", "--output=run.mp4"],
    ["--retarget=run.csv", "--output=/none/a.csv"],
    ["--retarget=run.csv", "--output=run.csv"],
    ["--retarget=run.csv", "--output=folder.csv"],
    ["--retarget=run.csv", "--output=link.csv"],
    ["--retarget=run.csv", "--body=nobody"],
    ["--retarget=run.csv", "--output=out.csv", "--start=5"],
    ["--retarget=run.csv", "--output=out.csv", "--stop=0.01"],
    ["--retarget=run.bvh", "--up=x"],
    *(["--retarget=run.bvh", f"--rate={odd}"] for odd in ("0", "-1", "nan", "inf", "1e9", "", "x")),
    *(["--retarget=run.bvh", f"--start={odd}"] for odd in ("-1", "nan", "inf", "1e9", "", "x")),
    *(["--retarget=run.bvh", f"--stop={odd}"] for odd in ("0", "-1", "nan", "inf", "1e9", "x")),
]
SWEEP = [
    "",
    "\0",
    "[[tasks]]",
    "tasks = 3",
    "tasks = []",
    "tasks = [3]",
    "tasks = [{}]",
    *(f'preset = "cpu"\nseeds = {odd}\ntasks = [{{task = "chain_reach"}}]' for odd in (
        "-1", "0", "1.5", "1e30", "nan", "true", '"3"', "[]", "[1, 1]", "[-1]", "[4294967296]",
        "[0.5]", "[[1]]", "{a = 1}", "99999999999999999999", "2024-01-01")),
    *(f'preset = "cpu"\ntasks = [{{task = "chain_reach", {odd}}}]' for odd in (
        "num_envs = 0", "num_envs = -1", "num_envs = nan", "num_envs = inf", "total_steps = 1e30",
        'total_steps = "x"', "total_steps = 100", 'body = "arm"', "set = 3", "set = [3]",
        'set = ["x"]', 'set = ["algo.width=1e30"]', 'name = ""', 'name = "../up"', 'name = ".h"',
        "name = 3", "video = 1", "unknown = 1", 'algo = "nobody"', 'set = ["seed=4"]')),
    'preset = "none"\ntasks = [{task = "chain_reach"}]',
    'preset = "cpu"\nlogdir = 3\ntasks = [{task = "chain_reach"}]',
    'preset = "cpu"\nlogdir = "/dev/null/x"\ntasks = [{task = "chain_reach"}]',
    'preset = "cpu"\nlogdir = "' + "x" * 300 + '"\ntasks = [{task = "chain_reach"}]',
    'preset = "cpu"\ncluster = 3\ntasks = [{task = "chain_reach"}]',
    'tasks = [{task = "chain_reach"}]',
]  # fmt: skip


def cases(**families):
    return [
        pytest.param(name, case, id=f"{name}-{number}")
        for name, found in families.items()
        for number, case in enumerate(found)
    ]


MAINS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "benchmark": benchmark.main,
    "motions": lambda flags: motions.commands.run(motions.command, flags),
    "sweep": sweep.main,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a motion in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(RUN, "run.csv")
    recording, _ = recorded_run()
    write_bvh(tmp_path / "run.bvh", recording.centres, recording.rate)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.csv").symlink_to("run.csv")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "case"),
    cases(train=TRAIN, evaluate=EVALUATE, benchmark=BENCHMARK, motions=MOTIONS, sweep=SWEEP),
)
def test_a_bad_input_takes_one_line_and_writes_nothing(folder, capsys, name, case):
    if name == "sweep":
        (folder / "bad.toml").write_text(case)
        case = ["bad.toml"]
    before = sorted(folder.rglob("*"))
    assert MAINS[name](case) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 1000, err
    assert sorted(folder.rglob("*")) == before


def test_they_are_many():
    assert sum(map(len, (TRAIN, EVALUATE, BENCHMARK, MOTIONS, SWEEP))) > 200


def mutated(data: bytes, draw: random.Random) -> bytes:
    """`data` with something cut, doubled, swapped or replaced."""
    words = (b"", b"nan", b"1e309", b"-1", b"\0", b"\xff", b"{", b"]", b'"', b",", b"null", b"\n")
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice((0, 1, 1, 3, 30, len(data))))
        middle = draw.choice((*words, data[start:end] * 2, data[start:end][::-1]))
        data = data[:start] + middle + data[end:]
    return data


READERS = {
    "config.json": lambda path: configs.load(path.parent),
    "evaluation.json": lambda path: assessment.load(path.parent),
    "metrics.csv": lambda path: metrics.read_rows(path.parent),
    "about.json": lambda path: checkpoint.read_about(path.parent),
    "digests.json": lambda path: inputs._digests(path.parent.parent),
    "run.bvh": lambda path: recordings.check_apart(path, recordings.read(path)),
    "run.csv": lambda path: library.of_human(str(path), human()) and None,
}


def written(name, folder):
    """A file as it should be."""
    path = folder / name
    if name == "config.json":
        configs.save(presets.resolve("chain_reach", device="cpu"), folder)
    elif name == "evaluation.json":
        policy = {"return_mean": 1.0, "return_std": 1.0, "length_mean": 2.0, "returns": [1.0]}
        result = {"policies": {"trained": policy, "idle": policy}, "control_dt": 0.1}
        result |= {"trained_minus": {"idle": {"mean": 1.0, "low": 0.0, "high": 2.0}}}
        assessment.save(result | {"idle_action": 0.0, "episodes": 2, "seed": 0}, folder)
    elif name == "metrics.csv":
        path.write_text("epoch,transitions,seconds\n" + "".join(f"{i},{i},1.5\n" for i in range(9)))
    elif name == "about.json":
        path = folder / "000000000080" / name
        path.parent.mkdir()
        counters = {"epochs": 1, "transitions": 80, "updates": 3}
        path.write_text(json.dumps({"fingerprint": {}, "counters": counters, "leaves": {"a": "b"}}))
    elif name == "digests.json":
        path = folder / "inputs" / name
        path.parent.mkdir()
        path.write_text('{"mine.csv": "0123"}')
    elif name == "run.csv":
        shutil.copy(RUN, path)
    else:
        recording, _ = recorded_run()
        few = {name: places[:12] for name, places in recording.centres.items()}
        write_bvh(path, few, recording.rate)
    return path


@pytest.mark.parametrize("name", READERS)
def test_whatever_is_in_a_file_it_is_read_or_refused(tmp_path, name):
    path, draw = written(name, tmp_path), random.Random(name)
    whole, refused = path.read_bytes(), 0
    READERS[name](path)
    for _ in range(100):
        path.write_bytes(mutated(whole, draw))
        try:
            READERS[name](path)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 25


def test_a_damaged_folder_still_has_its_page_or_one_line(tmp_path, capsys):
    run, draw = tmp_path / "run", random.Random(0)
    run.mkdir()
    whole = {name: written(name, run).read_bytes() for name in list(READERS)[:3]}
    for number in range(60):
        for name, data in whole.items():
            (run / name).write_bytes(mutated(data, draw) if draw.random() < 0.7 else data)
        assert report.main([str(run), f"--output={tmp_path / 'page.html'}"]) in (0, 2), number
        assert "Traceback" not in capsys.readouterr().err
        try:
            run_folder.settle(presets.resolve("chain_reach", device="cpu"), run)
        except UserError as error:
            assert "\n" not in str(error)


def test_an_odd_name_of_a_recording_is_refused(tmp_path):
    for name in ("none.amc", "x" * 300 + ".bvh", "a\0.bvh"):
        with pytest.raises(UserError):
            recordings.read(tmp_path / name)
