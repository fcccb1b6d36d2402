"""Labels: what the rest of a plan's timeline needs to know about the ops behind a cut.

On nested blocks worker 0 takes part in every op and message, so its two clocks give the timeline:
C (its computing has finished) and N (its messages have passed). The recurrence of
`simulator.recurrence` for one worker, with ops o of costs f, b, s, u, g (forward, backward, sum,
update, gather), edges e that move x forward and x' backward, and slowdown σ:

    forward    F_o = max(C, arrival of every e into o) + f;  C = F_o
               per moved e out of o:  N = max(N, F_o) + x_e;  arrival of e = N;  C += σ·x_e
    backward   B_o = max(C, return of every e out of o) + b;  C = S_o = B_o
               if K > 1 workers hold its parameters:  N = S_o = max(N, B_o) + s;  C += σ·s
               per moved e into o:  N = max(N, B_o) + x'_e;  return of e = N;  C += σ·x'_e
    update     o with parameters, last op first:  C = max(C, S_o) + u
               if K > 1:  N = max(N, C) + g;  C += σ·min(g, u)

All of it is maxima and sums. The part of the timeline behind a cut is therefore a matrix of the
max-plus algebra: times[row, column] is how much later `row` is on the way back than `column` was on
the way in.

    columns   FORWARD   the op in front of the cut has finished its forward pass
              NETWORK   earlier messages have passed, where some may still be under way then
              e         the message of edge e, which an op behind the cut waits for, has arrived
    rows      COMPUTE   C, including the returns that the op in front waits for
              NETWORK   N
              e         the return of another edge that crosses the cut
              UPDATES, GATHERS   A and G below

Updates and gathers follow after all backward passes, in the same order. Let C̄ and N̄ be the clocks
then. After the updates so far the clocks are max(C̄ + α, A) and max(N̄ + γ, C̄ + η, G). One more op
changes these to

    η = max(α + u, η) + g;  γ += g;  G = max(max(S, A) + u, G) + g      (if K > 1; g is 0 otherwise)
    α += u + σ·min(g, u);  A = max(S, A) + u + σ·min(g, u)

    timeline = max(C + α, C + η, N + γ, A, G)                           with all ops in the label

Dominance. C̄ and N̄ are maxima over the rows COMPUTE, NETWORK and e, plus what is added in front, and
they meet α, η and γ only in sums. So of two labels with the same layouts of all ops that still
matter in front of the cut, one can replace the other, whatever is put in front, if none of

    r, r + α, r + η, r + γ  for these rows r, A, G, the forward seconds of messages not sent yet,
    bytes of memory

is larger, in any column (`Labels.criteria`). This is why dominance stays exact although syncs overlap
with the backward pass: what overlaps is in N, and N is compared. In a chain there is one column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from parallel.search.cost_table import Dependency, OpCosts
from parallel.simulator.partition import Floats, Ints

NEVER = -np.inf
FORWARD, NETWORK, COMPUTE, UPDATES, GATHERS = "forward", "network", "compute", "updates", "gathers"
Row = str | Dependency
Column = str | Dependency
Messages = Mapping[Dependency, tuple[Floats, Floats]]
"""Forward and backward seconds of exchanges [l]."""
EARLIEST = -1e9
"""A finite time in place of NEVER, for comparisons and weighted sums."""


@dataclass(eq=False)
class Labels:
    """The labels at one cut, as arrays [l]."""

    times: dict[tuple[Row, Column], Floats]
    alpha: Floats
    eta: Floats
    gamma: Floats
    unsent: dict[Dependency, Floats]
    """Forward seconds of messages that ops behind the cut receive from ops before the one in front of
    it; 0: nothing moves."""
    memory: Ints

    @staticmethod
    def empty() -> Labels:
        """Return the one label of no op."""
        times: dict[tuple[Row, Column], Floats] = {
            (row, FORWARD): np.full(1, NEVER) for row in (NETWORK, UPDATES, GATHERS)
        }
        times[COMPUTE, FORWARD] = np.zeros(1)
        return Labels(times, np.zeros(1), np.full(1, NEVER), np.zeros(1), {}, np.zeros(1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.alpha)

    def take(self, rows: Ints) -> Labels:
        """Return some of the labels."""
        return Labels(
            {key: time[rows] for key, time in self.times.items()},
            self.alpha[rows],
            self.eta[rows],
            self.gamma[rows],
            {edge: s[rows] for edge, s in self.unsent.items()},
            self.memory[rows],
        )

    @property
    def timeline_s(self) -> Floats:
        """The timeline, if no op is in front of the labels [l]."""
        compute, network, updates, gathers = (
            self.times[row, FORWARD] for row in (COMPUTE, NETWORK, UPDATES, GATHERS)
        )
        end: Floats = np.max(
            [compute + self.alpha, compute + self.eta, network + self.gamma, updates, gathers], axis=0
        )
        return end

    @property
    def sums(self) -> Floats:
        """The sums C + α, C + γ, N + γ, A and G of `completion_bounds` [5, l]."""
        compute = np.max(
            [
                time
                for (row, column), time in self.times.items()
                if column == FORWARD and row not in (NETWORK, UPDATES, GATHERS)
            ],
            axis=0,
        )
        network, updates, gathers = (self.times[row, FORWARD] for row in (NETWORK, UPDATES, GATHERS))
        return np.maximum(
            EARLIEST, [compute + self.alpha, compute + self.gamma, network + self.gamma, updates, gathers]
        )

    def criteria(self) -> Floats:
        """Return the criteria of dominance [l, criteria]: a label with none larger replaces another."""
        found = [*self.unsent.values(), self.memory]
        for (row, _), time in self.times.items():
            found.append(time)
            if row not in (UPDATES, GATHERS):
                found += [time + self.alpha, time + self.eta, time + self.gamma]
        return np.maximum(EARLIEST, np.stack(found, axis=1))

    def prepend(self, op: int, costs: OpCosts, slowdown: float, into: Messages) -> None:
        """Put an op in front of the labels.

        `costs` are those of its candidate in each label, `into` the forward and backward seconds of
        the edges into it, in the order of its inputs.
        """
        columns = self._columns()
        for row in self._rows():
            self.times[row, FORWARD] = self.times[row, FORWARD] + costs.forward_s
        for column in columns:
            self._backward(column, costs, slowdown, into)
        if costs.has_parameters:
            gather_s, shared = costs.gather_s, costs.shared
            self.eta = np.where(
                shared, np.maximum(self.alpha + costs.update_s, self.eta) + gather_s, self.eta
            )
            self.gamma = self.gamma + gather_s
            self.alpha = self.alpha + costs.update_s + slowdown * costs.beside_s
        self.unsent.update({edge: forward_s for edge, (forward_s, _) in into.items()})
        self._cut_before(op, columns, slowdown)

    def _backward(self, column: Column, costs: OpCosts, slowdown: float, into: Messages) -> None:
        """Extend the rows by the op's backward, its sync and its update."""
        times = self.times
        ended = computed = summed = times[COMPUTE, column] + costs.backward_s
        network = times[NETWORK, column]
        if costs.has_parameters:
            shared = costs.shared
            network = np.where(shared, np.maximum(network, ended) + costs.sum_s, network)
            summed = np.where(shared, network, ended)
            computed = ended + slowdown * costs.sum_s
            updated = np.maximum(summed, times[UPDATES, column]) + costs.update_s
            times[GATHERS, column] = np.where(
                shared, np.maximum(updated, times[GATHERS, column]) + costs.gather_s, times[GATHERS, column]
            )
            times[UPDATES, column] = updated + slowdown * costs.beside_s
        for edge, (_, backward_s) in into.items():
            returned = np.maximum(network, ended) + backward_s
            times[edge, column] = np.where(backward_s > 0, returned, NEVER)
            network = np.where(backward_s > 0, returned, network)
            computed = computed + slowdown * backward_s
        times[COMPUTE, column], times[NETWORK, column] = computed, network

    def _cut_before(self, op: int, columns: Sequence[Column], slowdown: float) -> None:
        """Move the cut to before `op`: the op in front sends its messages and waits for their return."""
        front = [edge for edge in self.unsent if edge.producer == op - 1]
        # The order in which the recurrence sends them.
        front.sort(key=lambda edge: (edge.consumer, edge.which))
        others = [edge for edge in self.unsent if edge not in front]
        seconds = {edge: self.unsent.pop(edge) for edge in front}
        total = sum(seconds.values(), start=np.zeros(len(self)))
        times: dict[tuple[Row, Column], Floats] = {}
        for row in self._rows():
            begun = self.times[row, FORWARD]  # when `op` begins to compute
            arrived = {
                edge: begun if edge.consumer == op else self.times[row, edge] for edge in [*front, *others]
            }
            earlier = self.times[row, NETWORK] if NETWORK in columns else np.full(len(self), NEVER)
            forward = np.maximum(begun + slowdown * total, np.where(total > 0, earlier + total, NEVER))
            network = np.where(total > 0, earlier + total, earlier)
            sent = np.zeros(len(self))
            for edge in front:
                sent = sent + seconds[edge]
                moved = np.where(seconds[edge] > 0, arrived[edge] + sent, NEVER)
                forward, network = np.maximum(forward, moved), np.maximum(network, moved)
            times[row, FORWARD] = forward
            if others:
                times[row, NETWORK] = network
                times.update({(row, edge): arrived[edge] for edge in others})
        left: list[Column] = [FORWARD, NETWORK, *others] if others else [FORWARD]
        for column in left:
            returned = [times.pop((edge, column)) for edge in front]
            times[COMPUTE, column] = np.max([times[COMPUTE, column], *returned], axis=0)
        self.times = times

    def _rows(self) -> list[Row]:
        return list(dict.fromkeys(row for row, _ in self.times))

    def _columns(self) -> list[Column]:
        return list(dict.fromkeys(column for _, column in self.times))


def nondominated(criteria: Floats, groups: Ints) -> Ints:
    """Return which labels remain if, within each group [l], dominated labels are dropped.

    A label is never dominated by one with a larger sum of criteria. So the first label of every group
    is kept, the labels that it dominates are dropped, and so on.
    """
    if not len(criteria):
        return np.zeros(0, dtype=np.int64)
    criteria = criteria[:, (criteria != criteria[0]).any(axis=0)]
    left, kept = np.lexsort((criteria.sum(axis=1), groups)), []
    while len(left):
        first = np.concatenate([[True], groups[left][1:] != groups[left][:-1]])
        heads = left[first]
        kept.append(heads)
        left = left[~(criteria[heads[np.cumsum(first) - 1]] <= criteria[left]).all(axis=1)]
    return np.sort(np.concatenate(kept))
