"""The fastest plan for a model, a batch and a cluster, with a proof of how good it is.

The problem. A space (`space`) gives every decided op o a set of candidates L_o: its degrees in n, c,
k, h, w on a block of workers; other ops follow. A plan chooses x_o ∈ L_o for each of them. With one
micro-batch, the cost model gives durations that depend only on neighbours:

    f_o(x_o), b_o(x_o)              forward, backward                       `CostTable.exact_op`
    s_o(x_o), u_o(x_o), g_o(x_o)    sum, update, gather                     `CostTable.exact_op`
    y_e(x_p, x_q), y'_e(x_p, x_q)   exchange over edge e = (p, q)           `CostTable.exact_edge`
    ℓ(x_1)                          loading of the images                   `Objective`

    minimise  T(x) + ℓ(x_1)  over x ∈ Π_o L_o,  with  Σ_o memory_o(x_o) ≤ the memory of a worker

T is the timeline: maxima and sums of these durations (`simulator.recurrence`). It is not a sum over
ops and edges, as in PaSE (Elango 2021), because syncs and exchanges overlap with computing.

The method is label setting with A* bounds, in the elimination order of PaSE (`exact`):

    recurrence   A label Λ(x) of the ops behind a cut is a max-plus matrix with three numbers for
                 the updates. Λ(o, x) = prepend(o, costs of o, Λ(x)); T = timeline(Λ(all ops)).
                                                              `Labels.prepend`, `Labels.timeline_s`
    order        From the loss to the images. A layout stays in the label as long as an op in front
                 reads or feeds it: one in a chain, two in a residual block.     `_Pass._needed`
    dominance    Of labels with the same such layouts, one that is larger in no criterion replaces
                 the other. The criteria include the network clock, in which syncs overlap, so that
                 the replacement holds for everything that may be put in front.
                                                              `Labels.criteria`, `nondominated`
    bound        T ≥ every path through its maxima. h(cut, x) = the least that such a path, or a
                 mean of them, grows in front of the cut, by dynamic programming over lower bounds
                 of the durations. h never exceeds the true growth, so a label with Λ + h ≥ the best
                 total known is in no better plan.                              `CompletionBounds`
    lower bounds A duration is a maximum over workers, and over some workers it is a lower bound:
                 of one op's largest part (`CostModel.least_compute_s`), of one worker's exchanges,
                 then of a few nodes' (`CostTable.tighten_edge`), and exact at last.

Plans with several micro-batches are outside this space and are searched by branch and bound: partial
pipelines whose lower bound is not below the best total are dropped, the others are simulated.

    space            the candidates of every decided op, and the plans of the space
    cost_table       durations of candidates: lower bounds that become exact
    labels           labels, their recurrence and their dominance
    completion_bounds  h
    exact            passes of growing width until one is complete, and the certificate's bound
    pipelines        stages on blocks side by side; `pipeline_stages`, `pipeline_bounds`
    passes           schemes b and c of one weird trick
    mcmc             FlexFlow's Markov chain over the space (Jia et al. 2019)
    exhaustive       every plan, for small cases and tests
    search           all of them, with named plans and the memory limit; `Found.certificate`
    resolve          the plan of `strategy=searched`; `kept_plans`
"""

from __future__ import annotations

from parallel.search.search import Found, Progress, SearchConfig, search, silent

__all__ = ["Found", "Progress", "SearchConfig", "search", "silent"]
