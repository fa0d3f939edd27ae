"""The model of the C library's heap."""

import random

from fedadamw.plan.heap import Heap
from fedadamw.prepare.malloc import MAX_MMAP_THRESHOLD


def test_a_gap_is_used_again_by_smaller_blocks_but_not_by_one_of_its_own_size():
    heap = Heap()
    first, _ = heap.take(10_000), heap.take(500)
    top = heap.top
    heap.give_back(first, 10_000)
    assert heap.gaps >= 10_000
    assert heap.take(5_000) == first
    assert heap.top == top
    heap.give_back(first, 5_000)
    assert heap.take(10_000) == top


def test_gaps_side_by_side_become_one():
    heap = Heap()
    places = [heap.take(1_000) for _ in range(4)]
    for place in (places[1], places[0], places[2]):
        heap.give_back(place, 1_000)
    assert heap.take(2_500) == places[0]


def test_large_blocks_are_not_in_the_heap():
    heap = Heap()
    assert heap.take(MAX_MMAP_THRESHOLD) is None
    assert heap.top == 0


def test_blocks_never_overlap_and_all_that_is_freed_is_a_gap():
    draw, heap, live = random.Random(0), Heap(), {}
    for _ in range(2000):
        if live and draw.random() < 0.5:
            place = draw.choice(list(live))
            heap.give_back(place, live.pop(place))
        else:
            size = draw.randrange(1, 100_000)
            place = heap.take(size)
            assert all(place + size <= other or other + live[other] <= place for other in live)
            live[place] = size
    for place, size in live.items():
        heap.give_back(place, size)
    assert (heap.used, heap.gaps) == (0, heap.top)
