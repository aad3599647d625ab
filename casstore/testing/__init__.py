"""Tools to test casstore with, shipped for those who write a backend or embed a store.

``contract``: what every backend must do. ``faulty``: a backend that fails on demand. ``record``: a trace of
file effects, and errors in their place. ``crashstates``: what a power cut could leave of such a trace.
``oracle``: what a store must answer, computed the obvious way. ``machine``: a hypothesis state machine that
compares the two. ``simulation``: several hosts over a faulty store in one thread (needs ``greenlet``).
"""
