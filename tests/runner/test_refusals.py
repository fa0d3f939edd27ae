"""Wrong settings and arguments of `fedadamw run` are refused in one line, before anything is written."""

import time

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "training.lrr=1"], "training.lrr is unknown (did you mean 'lr'?); use one of rounds, "),
        (["-s", "trainin.lr=1"], "trainin is unknown (did you mean 'training'?)"),
        (["-s", "rounds=3"], "rounds is unknown (did you mean 'training.rounds'?); use one of seed, device"),
        (["-s", "lr=1"], "lr is unknown (did you mean 'training.lr' or 'training.outer.lr'?)"),
        (["-s", "alpha=1"], "alpha is unknown (did you mean 'algorithm.alpha' or 'lora.alpha'?)"),
        (["-s", "beta1=1"], "beta1 is unknown (did you mean 'algorithm.betas'?)"),
        (["-s", "training.clients=9"], "training.clients is unknown (did you mean 'partition.clients'?)"),
        (["-s", "model.lora={r: 4}"], "model.lora is unknown (did you mean 'lora'?)"),
        (
            ["-s", "algorithm.lr=1"],
            "algorithm.lr is unknown (did you mean 'training.lr' or 'training.outer.lr'?); fedadamw has betas",
        ),
        (["-s", "algorithm.mu=1"], "alpha, align, memory, share; mu is a setting of fedprox"),
        (["sst2"], "recipe 'sst2' is unknown (did you mean 'paper/glue-sst2'?)"),
        (["own.yaml"], "Rounds is unknown (did you mean 'training.rounds'?)"),
        (["-s", "training.lr=-1"], "training.lr=-1: input should be greater than 0"),
        (["-s", "training.lr=fast"], "training.lr='fast': input should be a valid number"),
        (["-s", "training.lr=["], "-s ...='[': not YAML: while parsing"),
        (["-s", "training.schedule=cosin"], "training.schedule='cosin' (did you mean 'cosine'?)"),
        (["-s", "algorithm.name=5"], "algorithm.name=5 must be a word"),
        (["-s", "data.validation=1e-9"], "holds out 0 of 1,437 samples"),
        (["-s", "algorithm.eps=0"], "algorithm: eps=0.0 must be at least 1.18e-38"),
        (["-s", "device=meta"], "device='meta' is not a device to train on; use one of auto, cpu, cuda, cuda:0"),
        (["-s", "device=mps"], "device='mps' is not a device to train on"),
        (["-s", "device=cuda:-1"], "device='cuda:-1' is not a device to train on"),
        (["-s", "model.norm=batch"], "model.norm is a setting of resnet-nano, resnet18, not of"),
        (["-s", "partition.kind=column", "-s", "partition.column=who"], "digits have no columns"),
        (["--out", __file__], "is a file, not a folder"),
        (["-s", "training.lr"], "give key.path=value"),
        (["-s", "seed.x=1"], "seed is a setting, not a section"),
        (["-s", "algorithm.share=vv"], "share='vv' is unknown"),
        (["-s", "algorithm.name=fedavgg"], "(did you mean 'fedavg'?)"),
        (["-s", "model.name=vit-macro"], "(did you mean 'vit-micro'?)"),
        (["-s", "model.name=./nowhere"], "model.name='./nowhere': no such folder"),
        (["-s", "model.blocks=row"], "use one of paper, coarse, tensor, coordinate"),
        (["-s", "data.source=./nowhere"], "data.source='./nowhere': no such folder"),
        (["-s", "partition.kind=odd"], "partition.kind='odd'"),
        (["-s", "partition.clients=5000"], "partition.clients=5,000 is more than the 1,437 training samples"),
        (["-s", "partition.kind=column"], "needs partition.column"),
        (["-s", "training.clients_per_round=101"], "clients_per_round=101 is more than the 100 clients"),
        (["-s", "trackers=[tensorbored]"], "did you mean 'tensorboard'"),
        (["-s", "device=cuda:99"], "device='cuda:99': torch finds no such GPU here; available: cpu"),
        (["--resume"], "--resume needs --out"),
        (["--resume", "--out", "nowhere"], "nowhere holds no run to resume"),
        (["digitz"], "recipe 'digitz' is unknown (did you mean 'digits'?)"),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--resum"], "No such option"),
    ],
)
def test_wrong_input_gives_one_error_line_and_writes_nothing(arguments, message, tmp_path, monkeypatch, run_main):
    monkeypatch.chdir(tmp_path)
    if "own.yaml" in arguments:
        (tmp_path.parent / "own.yaml").write_text("Rounds: 3\n")
        arguments = ["../own.yaml"]
    done = run_main("run", *arguments, "--ranks", "1")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    if "No such option" not in message:
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


BILLION_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            BILLION_LAUGHS + "model: {name: *i}\n",
            "is too large for settings: more than 100,000 characters, with aliases expanded",
        ),
        (f"seed: &a {'x' * 90_000}\nmodel: [*a, *a]\n", "is too large for settings"),
        ("a: 1\n" * 200_000, "is too large for settings"),
        ("seed: [" + "1," * 49_000 + "]", "is too large for settings"),
        ("data: " + "[" * 5_000 + "]" * 5_000, "is too deep for settings: more than 20 sections or lists"),
        ("data: &a [*a]", "*a is inside the value that it refers to"),
        ("data: *a", "not YAML: found undefined alias"),
        ("seed: 2024-13-45", "not YAML: month must be in 1..12"),
        ("seed: !!int ''", "not YAML: "),
        (f"seed: {'9' * 5_000}", "not YAML: Exceeds the limit"),
        (f"seed: 0x{'f' * 9_000}", "contains an integer beyond 2**63"),
        (f"algorithm: [0, {{a: 0x{'f' * 9_000}}}]", "contains an integer beyond 2**63"),
        (f"? 0x{'f' * 9_000}\n: 1", "contains an integer beyond 2**63"),
        (f"seed: 1{':01' * 200}.5", "not YAML: "),
        ("algorithms: {1: {lr: 1}}", "algorithms=1 is unknown; use one of"),
        (f"seed: {'x' * 50_000}", f"seed='{'x' * 199}...: input should be a valid integer"),
        (f"? {'x' * 50_000}\n: 1", "xxx..."),
    ],
)
def test_huge_or_exploding_yaml_is_refused_quickly_in_one_short_line(content, message, tmp_path, run_main):
    (tmp_path / "own.yaml").write_text(content)
    start = time.process_time()
    done = run_main("run", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "out"))
    assert time.process_time() - start < 20, "unrefused, some of them compute for hours"
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert len(done.stderr) < 5_000
    if "\n" not in content:
        value = content.partition(": ")[2]
        assert run_main("run", "-s", f"seed={value}", "--out", str(tmp_path / "out")).returncode == 2
