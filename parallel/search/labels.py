"""Labels: all that the rest of the timeline needs to know of the ops behind a cut, so that few plans need be kept.

Read the ops of a plan with one micro-batch from the loss to the images. In `parallel.simulator`'s timeline every op of
nested blocks takes worker 0's time, and so does every message; no other worker's clock is ever ahead of worker 0's. So
two clocks describe a plan: C (worker 0 has computed) and N (its messages have passed). Forward is one op or message at
a time, so putting an op p in front of others moves all their times back by its forward time f and that of its exchange
x with the next op. Times count from the start of the first op of the label, E is the end of its backward pass:

    C, E, N, A, G  +=  f + x                                            (shift)
    E = max(E, N) + x';  N = E;  C += σ·x'          if the exchange with the next op has to be taken back
    C = E = max(C, E) + b                                               (backward of p)
    N = S = max(E, N) + s;  C += σ·s                if K > 1 workers hold its parameters and sum their gradients;
    S = E                                           if one has them

Updates u and gathers g follow after all backwards in the same order, loss first; let C̄, N̄ be the clocks then. The
clocks after the updates so far are max(C̄ + α, A) and max(N̄ + γ, C̄ + η, G), and one more op makes of them

    η = max(α + u, η) + g;  γ += g;  G = max(max(S, A) + u, G) + g      (if K > 1; σ·g is 0 otherwise)
    α += u + σ·g;  A = max(S, A) + u + σ·g

    timeline = max(C + α, C + η, N + γ, A, G)                           with all ops in front

Dominance. Everything above is a maximum of sums, and α, η and γ meet the clocks only in the sums C̄ + α, C̄ + η, N̄ + γ.
C̄ and N̄ are maxima of C + …, N + … (E differs from C by σ·s of the first op of the label, which its layout fixes). So
of two labels with the same layouts at the cut, one can replace the other under all that may come in front, if none of

    C, N, A, G, C + α, N + α, C + η, N + η, C + γ, N + γ, M             (M: bytes of memory, if the limit can bind)

is larger: no later time will be. Where an op feeds others than the next (a branch), its exchanges with those may run
beside other work, and the equations hold only while nothing has to be moved there; `Label.odd` says that something
had. Leaving such messages out makes no time later, so that an odd label is a lower bound, and a plan that ends with
one has to be simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

NEVER = float("-inf")


@dataclass(frozen=True)
class Work:
    """What an op costs under one layout, in seconds."""

    forward_s: float
    backward_s: float
    has_parameters: bool
    shared: bool
    """More than one worker holds the same parameters: they are summed and gathered."""
    sum_s: float
    update_s: float
    gather_s: float


class Label(NamedTuple):
    """See the module's equations."""

    c: float = 0.0
    e: float = 0.0
    n: float = 0.0
    a: float = NEVER
    g: float = NEVER
    alpha: float = 0.0
    eta: float = NEVER
    gamma: float = 0.0
    memory: int = 0
    odd: bool = False

    @property
    def timeline_s(self) -> float:
        """When everything has ended, if no op is in front."""
        return max(self.c + max(self.alpha, self.eta), self.n + self.gamma, self.a, self.g)

    def dominates(self, other: Label, memory: bool) -> bool:
        """Whether no later time of this one can be later than the other's; `memory`: nor its memory larger."""
        c, n, oc, on = self.c, self.n, other.c, other.n
        return (c <= oc and n <= on and self.a <= other.a and self.g <= other.g
                and c + self.alpha <= oc + other.alpha and n + self.alpha <= on + other.alpha
                and c + self.eta <= oc + other.eta and n + self.eta <= on + other.eta
                and c + self.gamma <= oc + other.gamma and n + self.gamma <= on + other.gamma
                and (not memory or self.memory <= other.memory))


START = Label()
"""Of no op at all."""


def prepend(label: Label, work: Work, exchange: tuple[float, float] | None, slowdown: float, nbytes: int = 0) -> Label:
    """The label with an op in front, which needs so many bytes; `exchange` is forward and backward seconds of its
    exchange with the next op, None where nothing moves."""
    c, e, n, a, g, alpha, eta, gamma, memory, odd = label
    shift = work.forward_s
    if exchange is not None:
        forward_s, backward_s = exchange
        shift += forward_s
        e = max(e, n) + backward_s
        n = e
        c += slowdown * backward_s
    c = (c if c > e else e) + work.backward_s
    e = c
    if work.has_parameters:
        summed = e
        u, gather = work.update_s, 0.0
        if work.shared:
            n = summed = max(e, n) + work.sum_s
            c += slowdown * work.sum_s
            gather = work.gather_s
            eta = max(alpha + u, eta) + gather
            gamma += gather
            g = max(max(summed, a) + u, g) + gather
        alpha += u + slowdown * gather
        a = max(summed, a) + u + slowdown * gather
    return Label(c + shift, e + shift, n + shift, a + shift, g + shift, alpha, eta, gamma, memory + nbytes, odd)
