"""What a backend's backward pass needs, named: a remat policy keeps it by this name."""

ATTENDED = "attended"  # attention's output, and the log-sum-exp of its scores
