"""The work of one run: extend, attach, train and score stage by stage, save; and how it goes on.

Whatever is needed to go on after a kill is in a checkpoint; whatever is left is written under a
temporary name and renamed. `run.finish` is the order of it all; the other modules are its parts.
"""
