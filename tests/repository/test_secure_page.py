"""docs/secure-aggregation.md says what the committed record says."""

from benchmarks.pages import secure

RECORD = {
    "device": "cpu: 2 cores",
    "versions": {"flwr": "1.41.0"},
    "nodes": 4,
    "rounds": 3,
    "accuracy": {"secure": 0.85, "plain": 0.853},
    "differences": {"x": 4.2e-6, "delta": 2e-5, "v": 3e-4, "t": 0.0},
    "upload_bytes": {"secure": 38600, "plain": 19300},
}


def test_the_page_is_written_from_the_committed_record():
    page = secure.PAGE.read_text()
    assert secure.PART.search(page)
    assert secure.fill(page) == page, "run python -m benchmarks.pages.secure"


def test_a_record_in_words():
    text = secure.describe(RECORD)
    assert "the weights differ by 4e-06 of the way they have moved, Delta_G by 2e-05 of its norm, v by at most" in text
    assert "the accuracy is 0.850 and 0.853. An upload has 38,600 bytes in place of 19,300." in text
