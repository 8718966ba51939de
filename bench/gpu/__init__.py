"""What only a GPU can tell: ``python -m bench.gpu`` proves the package on CUDA and measures what a CPU cannot.

Nothing here needs more than torch and numpy; what has further needs says so and is left out without them. With
``--device cpu --small`` every part runs on a few small sizes, so that the command is in order when a GPU is at hand.
"""
