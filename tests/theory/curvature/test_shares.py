"""Shares of curvature inside blocks against dense matrices, and what they are for a ViT."""

import pytest
import torch
from theory.curvature.small_vits import make_subject

from fedadamw.theory.curvature import jacobian as jacobian_module
from fedadamw.theory.curvature import shares as module
from fedadamw.theory.curvature.inside import find_cuts, measure_curvature
from fedadamw.theory.curvature.moments import explain, second_moment
from fedadamw.theory.curvature.shares import row_map, share_inside, sum_of_squares


@pytest.mark.parametrize("rows", [3, 50])  # fewer and more than columns
@pytest.mark.parametrize("at_once", [2**24, 30])
def test_shares_equal_those_of_the_dense_matrix(monkeypatch, rows, at_once):
    monkeypatch.setattr(module, "LARGEST", at_once)
    generator = torch.Generator().manual_seed(rows)
    j = torch.randn(rows, 12, dtype=torch.float64, generator=generator)
    blocks = torch.tensor([0, 1, 0, 1, 2, 2, 2, 3, 0, 1, 4, 4])  # of unequal sizes, not in order
    squares = (j.T @ j).square()
    together = blocks[:, None] == blocks[None]
    share = share_inside(j, blocks)
    assert share.inside == pytest.approx(float(squares[together].sum() / squares.sum()), rel=1e-12)
    assert share.even == pytest.approx(float(together.double().mean()), rel=1e-12)
    shuffled = [blocks[torch.randperm(12, generator=generator)] for _ in range(4000)]
    drawn = [float(squares[b[:, None] == b[None]].sum() / squares.sum()) for b in shuffled]
    assert share.shuffled == pytest.approx(sum(drawn) / len(drawn), rel=0.02)


@pytest.mark.parametrize("rows", [7, 50])  # by products of rows, and of columns
def test_the_map_sums_to_all_squares(rows):
    j = torch.randn(rows, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(12) % 4
    found = row_map(j, rows)
    assert float(found.square().sum()) == pytest.approx(sum_of_squares(j), rel=1e-12)
    assert float(found.square().trace() / found.square().sum()) != pytest.approx(1)
    squares = (j.T @ j).square()
    assert float(found[1, 2] ** 2) == pytest.approx(float(squares[rows == 1][:, rows == 2].sum()), rel=1e-12)


def test_parameters_are_cut_by_heads_and_rows():
    cuts = find_cuts(make_subject(classes=3, width=8, heads=2, images=2, dtype=torch.float32).model)
    query = (
        cuts["vit.layers.0.attention.q_proj.weight"]
        if "vit.layers.0.attention.q_proj.weight" in cuts
        else next(found for name, found in cuts.items() if found[0].kind == "query")
    )
    assert [(cut.name, int(cut.labels.max()) + 1) for cut in query] == [("heads", 2), ("rows", 8)]
    mlp = next(found for found in cuts.values() if found[0].kind == "mlp")
    assert [(cut.name, int(cut.labels.max()) + 1) for cut in mlp] == [("rows", 16)]
    assert not any("bias" in name for name in cuts)


def heads_share(classes: int) -> tuple[float, float]:
    """The share inside the heads of queries and keys, and chance, on a small ViT with so many classes."""
    subject = make_subject(classes=classes, width=16, heads=4, images=12, dtype=torch.float32, mlp=16)
    found = [r.share for r in measure_curvature(subject, 12).inside if r.cut == "heads" and r.kind in ("query", "key")]
    assert len(found) == 2
    return sum(s.inside for s in found) / 2, max(max(s.even, s.shuffled) for s in found)


def test_heads_hold_more_curvature_than_chance_and_more_with_more_classes():
    few, chance_few = heads_share(10)
    many, chance_many = heads_share(100)
    assert few > 1.5 * chance_few
    assert many > 1.5 * chance_many
    assert many > few + 0.02


def test_parameters_in_several_groups_give_the_same_shares(monkeypatch):
    subject = make_subject(classes=3, width=8, heads=2, images=4, dtype=torch.float64)
    whole = measure_curvature(subject, 4)
    monkeypatch.setattr(jacobian_module, "LIMIT_BYTES", 12 * 8 * 200)
    steps = []
    parts = measure_curvature(subject, 4, lambda what, done, total: steps.append((what, done, total)))
    assert steps[-1][1] == steps[-1][2] > 4
    for one, other in zip(whole.inside, parts.inside, strict=True):
        assert one.parameter == other.parameter
        assert one.share.inside == pytest.approx(other.share.inside, rel=1e-10)


def test_what_blocks_explain_of_log_v():
    v = torch.tensor([1.0, 1.0, 100.0, 100.0, 0.0, 1.0], dtype=torch.float64)
    assert explain(v, torch.tensor([0, 0, 1, 1, 1, 0])).share == pytest.approx(1)
    mixed = explain(v, torch.tensor([0, 1, 0, 1, 1, 2]))  # logs 0 2 | 0 2 | 0, around .8
    assert (mixed.share, mixed.chance, mixed.blocks) == (pytest.approx(1 - 4 / 4.8), pytest.approx(2 / 4), 3)
    assert explain(v, torch.zeros(6, dtype=torch.long)).share == pytest.approx(0)


def test_the_second_moment_is_the_mean_square_of_batch_gradients():
    subject = make_subject(classes=3, width=4, heads=2, images=16, dtype=torch.float64)
    order, expected = subject.draw(16), 0.0
    for part in (order[:8], order[8:], order[:8]):  # again from the start when the samples are used up
        (batch,) = subject.batches(part, 8)
        subject.model.zero_grad()
        subject.task.losses(subject.model, batch).mean().backward()
        expected = expected + torch.cat([p.grad.reshape(-1) for p in subject.model.parameters()]).square() / 3
    assert torch.allclose(second_moment(subject, 3), expected, rtol=1e-12)
