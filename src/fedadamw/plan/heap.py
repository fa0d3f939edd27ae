"""The C library's heap: what a process on a CPU holds besides its tensors, since freed blocks leave gaps.

A model of glibc's malloc as prepare/malloc.py tunes it: a block goes into the smallest gap that it fits in, else the
heap grows, and it never shrinks. Larger blocks than the heap's are mapped from the system and given back. An aligned
block is cut out of a larger one, so it fits no gap of its own size.
"""

from bisect import bisect_left, insort

from fedadamw.prepare.malloc import MAX_MMAP_THRESHOLD

ALIGNMENT = 64  # bytes, of torch's tensors
SPARE = 96  # bytes that a gap must have besides those of a block


class Heap:
    """Blocks by their place, and the gaps between them."""

    def __init__(self) -> None:
        self.top = 0  # bytes of the heap
        self.used = 0  # of its blocks
        self._gaps: list[tuple[int, int]] = []  # (size, place), sorted
        self._starts: dict[int, int] = {}  # place -> size of the gap that starts there
        self._ends: dict[int, int] = {}  # place where a gap ends -> its size

    @property
    def gaps(self) -> int:
        """Bytes of the heap that no block uses."""
        return self.top - self.used

    def take(self, size: int) -> int | None:
        """Return the place of a new block; None if it is not in the heap."""
        if size >= MAX_MMAP_THRESHOLD:
            return None
        size = _rounded(size)
        self.used += size
        found = bisect_left(self._gaps, (size + SPARE, 0))
        if found == len(self._gaps):
            return self._grow(size)
        gap, place = self._gaps[found]
        self._remove_gap(gap, place)
        if gap > size:
            self._add_gap(gap - size, place + size)
        return place

    def give_back(self, place: int, size: int) -> None:
        """Free the block of `size` at `place`; gaps beside it become one with it."""
        size = _rounded(size)
        self.used -= size
        if place in self._ends:
            before = self._ends[place]
            self._remove_gap(before, place - before)
            place, size = place - before, size + before
        if place + size in self._starts:
            after = self._starts[place + size]
            self._remove_gap(after, place + size)
            size += after
        self._add_gap(size, place)

    def _grow(self, size: int) -> int:
        """Put a block at the end, into the gap there if there is one."""
        last = self._ends.get(self.top, 0)
        place = self.top - last
        if last:
            self._remove_gap(last, place)
        self.top = place + size
        return place

    def _add_gap(self, size: int, place: int) -> None:
        insort(self._gaps, (size, place))
        self._starts[place] = self._ends[place + size] = size

    def _remove_gap(self, size: int, place: int) -> None:
        del self._gaps[bisect_left(self._gaps, (size, place))]
        del self._starts[place], self._ends[place + size]


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT
