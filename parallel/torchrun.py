"""torchrun with a rendezvous that listens on one address only. The arguments are those of torchrun.

    python -m parallel.torchrun --nproc-per-node 2 -m parallel.train strategy=data_parallel

On several hosts (192.0.2.1 is the address of the first; the same command with another rank on each):

    python -m parallel.torchrun --nnodes 2 --node-rank 0 --nproc-per-node 2 --master-addr 192.0.2.1 \\
        --master-port 29500 -m parallel.train strategy=data_parallel
"""

from __future__ import annotations

from parallel.cli.torchrun import torchrun

if __name__ == "__main__":
    torchrun()
