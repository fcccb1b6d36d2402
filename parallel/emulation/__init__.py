"""Clusters on one machine: hosts as namespaces, joined by shaped links.

    description.py   what a cluster is: hosts, links, processors; checked at construction
    devices.py       the commands that make and shape its network
    holders.py       the processes that hold the namespaces
    processors.py    control groups that limit a host's processor time
    cluster.py       make, change, list and remove clusters
    lock.py          locks against other commands
    torchrun.py      one multi-node torchrun in a cluster

A namespace lives as long as a process in it. Nothing has a name outside the namespaces: no
interface, no file in /run/netns, no mount. So whatever ends the holders removes the network, and a
cluster whose maker is killed disappears by itself; the next command removes the rest, its state
folder and its control groups.
"""
