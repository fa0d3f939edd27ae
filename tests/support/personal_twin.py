"""The literal twins with personal parameters: one twin for what is shared, and one for each client's own numbers.

They run side by side, each in a thread: where a local step needs the gradient, the twin of what is shared and that of
the client meet, put their numbers together, and each takes its part of the gradient.
"""

import threading
from queue import Queue
from typing import NamedTuple

from support.reference import Problem

WAIT_S = 60


class Histories(NamedTuple):
    shared: list  # after each round
    own: dict  # of each client: after each of its rounds


class Meeting:
    """Where the two twins meet, step after step."""

    def __init__(self, shared, own):
        self.shared, self.own = shared, own
        self.mine, self.gradients = Queue(), Queue()

    def of_shared(self, gradient):
        def meet(y):
            whole = [0.0] * (len(self.shared) + len(self.own))
            for places, numbers in ((self.shared, y), (self.own, self.mine.get(timeout=WAIT_S))):
                for place, number in zip(places, numbers, strict=True):
                    whole[place] = number
            g = gradient(whole)
            self.gradients.put([g[place] for place in self.own])
            return [g[place] for place in self.shared]

        return meet

    def of_own(self, y):
        self.mine.put(list(y))
        return self.gradients.get(timeout=WAIT_S)


def run_with_personal(twin, x0, rounds, problem, own, settings):
    """The histories of `twin` if the coordinates `own` are personal."""
    shared = [place for place in range(len(x0)) if place not in set(own)]
    meetings = {client: Meeting(shared, own) for _, clients in rounds for client in clients}
    of_clients = {
        client: [
            (lr, {0: [meetings[client].of_own] * len(clients[client])}) for lr, clients in rounds if client in clients
        ]
        for client in meetings
    }
    histories = {}

    def follow(client):
        histories[client] = twin([x0[p] for p in own], of_clients[client], part_of(problem, own, 1), **settings)

    threads = [threading.Thread(target=follow, args=[client], daemon=True) for client in meetings]
    for thread in threads:
        thread.start()
    of_shared = [
        (lr, {client: [meetings[client].of_shared(g) for g in steps] for client, steps in clients.items()})
        for lr, clients in rounds
    ]
    history = twin([x0[p] for p in shared], of_shared, part_of(problem, shared, problem.clients), **settings)
    for thread in threads:
        thread.join(WAIT_S)
    return Histories(history, histories)


def part_of(problem, places, clients):
    """The problem of these coordinates alone."""
    number = {place: i for i, place in enumerate(places)}

    def keep(coordinates):
        return [number[place] for place in coordinates if place in number]

    hidden = [rows for rows in ([keep(row) for row in rows] for rows in problem.hidden) if rows[0]]
    blocks = [block for block in map(keep, problem.blocks) if block]
    tensors = [(inside, matrix) for inside, matrix in ((keep(c), matrix) for c, matrix in problem.tensors) if inside]
    return Problem(blocks, tensors, hidden, clients)
