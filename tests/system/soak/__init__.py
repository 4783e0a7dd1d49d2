"""A soak test: real processes against the sandbox while they are killed, stopped and cut off.

``python -m tests.system.soak --help`` lists the options.
"""
