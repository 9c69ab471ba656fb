"""Where and how a network computes: device, precision, threads, processes.

Takes a recipe and a network; gives the same steps on every machine.
"""
