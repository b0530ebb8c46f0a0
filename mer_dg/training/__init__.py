"""State, the pure step, the two drivers, the loop around them, checkpoints.

Imported by module name: `checkpoints` needs Orbax, `progress` needs tqdm, the rest
needs neither.
"""
