"""When devices are there: each lookup against a loop over single devices and plain arithmetic."""

import math

import numpy as np
import pytest

from fedadamw.devices.availability import LATER_S, Always, Daily, Traced
from fedadamw.devices.traces import read_times
from fedadamw.validation import InputError

DAY = 100.0


def spans_of(device: int, availability: Daily | Traced) -> list[tuple[float, float]]:
    """The times of a device in days -1 to 5, joined, from first principles."""
    if isinstance(availability, Daily):
        begin = -availability.phase_s[device]
        return [(begin + day * DAY, begin + day * DAY + availability.online_s) for day in range(-1, 6)]
    times = availability.times
    traced = device % (len(times.first) - 1)
    own = range(times.first[traced], times.first[traced + 1])
    spans = [(times.from_s[i] + day * DAY, times.to_s[i] + day * DAY) for day in range(-1, 6) for i in own]
    joined = [spans[0]]
    for begin, end in spans[1:]:
        if begin == joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


@pytest.fixture
def trace(tmp_path):
    rows = ["b,90,100", "a,10,20", "b,0,5", "a,30,40.5", "a,20,25", "c,0,100", "d,99,100"]
    (tmp_path / "times.csv").write_text("\n".join(["device,from_s,to_s", *rows]) + "\n")
    return read_times(str(tmp_path / "times.csv"), DAY)


def cases(trace):
    return [Daily(np.array([0.0, 37.5, 99.999, 50.0, 3.0]), 30.0, DAY), Traced(7, trace, DAY)]


def test_lookups_are_those_of_single_devices(trace):
    times = np.random.default_rng(0).uniform(0, 3 * DAY, 60)
    for availability in cases(trace):
        devices = len(availability.online(None, 0.0))
        for t in [*times, 0.0, 10.0, 5.0, 20.0, 99.0, 100.0]:
            spans = [spans_of(device, availability) for device in range(devices)]
            now = [next(((b, e) for b, e in own if b <= t + LATER_S < e), None) for own in spans]
            expected = [there is not None for there in now]
            assert availability.online(None, float(t)).tolist() == expected
            assert availability.online(np.array([3, 1]), float(t)).tolist() == [expected[3], expected[1]]
            following = [t if there else min(b for b, _ in own if b > t) for there, own in zip(now, spans, strict=True)]
            assert availability.next_online(None, float(t)) == pytest.approx(following, abs=1e-9)
            leaves = [t if there is None else there[1] for there in now]
            leaves = [math.inf if end - t > 2 * DAY else end for end in leaves]
            assert availability.leaves(None, float(t)) == pytest.approx(leaves, abs=1e-9)


def test_a_device_is_there_when_it_is_said_to_come_and_gone_when_it_leaves(trace):
    for availability in cases(trace):
        time = np.full(len(availability.online(None, 0.0)), 1e7 / 3)
        every = np.arange(len(time))
        for _ in range(20):
            time = availability.next_online(every, time)
            assert availability.online(every, time).all()
            ends = availability.leaves(every, time)
            assert (ends > time).all()
            time = np.where(np.isfinite(ends), ends, time)
            assert (availability.online(every, time) == np.isinf(ends)).all()


def test_without_settings_and_with_a_whole_day_nobody_leaves():
    for availability in (Always(3), Daily(np.zeros(3), DAY, DAY)):
        assert availability.online(None, 55.0).all()
        assert np.isinf(availability.leaves(np.arange(3), 55.0)).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device,from_s\na,1\n", "no column 'to_s'"),
        ("device,from_s,to_s\n", "no row"),
        ("device,from_s,to_s\na,1,x\n", "line 2: to_s='x' is not a number"),
        ("device,from_s,to_s\na,1,2\na,7,7\n", "line 3: from_s=7 must be at least 0 and less than to_s=7"),
        ("device,from_s,to_s\na,1,1.00001\n", "line 2: lasts 1e-05 s, less than 0.001 s"),
        ("device,from_s,to_s\na,1,200\n", "more than devices.availability.day_s=100"),
        ("device,from_s,to_s,to_s\na,1,2,3\n", "has two columns 'to_s'"),
        ('device,from_s,to_s\n"a,1,2\n', "is no CSV file"),
        ("device,from_s,to_s\na,1\n", "line 2 has 2 values for 3 columns"),
    ],
)
def test_a_damaged_trace_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "times.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_times(str(tmp_path / "times.csv"), DAY)
