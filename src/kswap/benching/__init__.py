"""Presets × orders × seeds over one swap: what runs, how it is run, and the table of it.

`kswap bench` is the door; every run is an ordinary `kswap run` in a process of its own, whose
folder is kept, so that the same command goes on where it was stopped.
"""
