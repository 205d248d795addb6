"""The GPU without a GPU, and with one.

`tests.gpu.pretend` is a device for machines that have none: ``python -m tests.gpu.count`` says what every decoder asks
of it, line by line.
"""
