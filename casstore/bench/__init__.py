"""Measures casstore beside its rivals on one machine: the same files, the same steps, whole processes, in turns.

`casstore bench` and ``scripts/bench`` run `casstore.bench.runner.run`. Nothing here touches a store from inside:
casstore is run as ``python -m casstore``, as any other program is. ``contenders`` says how each program is driven,
``corpora`` makes the files, ``measuring`` measures a process, ``report`` turns samples into a document and tables.
"""
