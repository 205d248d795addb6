"""The device check: is the code right on this machine's GPU, how fast is it, where does the time go."""
