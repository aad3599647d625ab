"""Deterministic simulation: several hosts, their clocks and views, over one faulty store, in one thread.

Each process is a greenlet that runs the library's own code; every call of the backend, look at the clock and sleep is a
moment at which the scheduler, a function of the seed, may let another one run, kill it, or stop it for weeks. What
happens is told to an abstract machine (`conformance`) that carries the protocol out by rules of its own, and to an
oracle that knows what was promised.

`options`: what a seed turns on · `world`: time and the scheduler · `host`: clocks, processes · `network`: the store ·
`faults` · `operations`: what processes do · `conformance`, `names`, `oracle`: what must be true · `finish`: liveness ·
`runner`, `shrink`: play a seed, make it smaller · `mutations`: bugs to put in on purpose. Needs ``greenlet``.
"""
