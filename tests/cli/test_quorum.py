"""A run whose simulated devices are away for too long says so in one line."""

from support.command import SHORT_RUN


def test_a_run_without_a_quorum_ends_with_one_line(run_main, tmp_path):
    away = ["devices.availability={kind: daily, online: 0.001}", "federation.quorum=10", "federation.wait_s=1"]
    settings = [word for setting in away for word in ("-s", setting)]
    done = run_main("run", "digits", *SHORT_RUN, *settings, "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: round 1: ")
    assert "10 are needed (federation.quorum); waited 1 s of the virtual clock (federation.wait_s)" in said
