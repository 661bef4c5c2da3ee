"""The model side of a run: load it, find its blocks, extend its head, adapt it, write it out.

Nothing is imported here, so that `import kswap` stays light; each module is imported where it is
used.
"""
