"""The papers' algorithms in NumPy float64, written from the papers.

Plain loops over terms, groups and leaves, to be read beside the printed algorithm.
Nothing here is fast and nothing here knows the library. ``theta`` is a list of
arrays; ``gradients(t, theta)`` returns for each term a list with one array per leaf.
Each run returns the parameters after every step.
"""
