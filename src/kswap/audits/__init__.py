"""Audits: is it really forgotten? One file per question, pure functions over what models answer.

Each audit treats three models alike: base (before), swapped (after; saved, merged and loaded
again), and a reference that never saw the forget data. `features.py` computes what every model
makes of every image once; the audits share it. `kswap.auditing` is the door.
"""
