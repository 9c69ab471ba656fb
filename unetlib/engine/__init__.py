"""Where and how a network computes: device, precision, threads, processes, learning rate.

It takes a recipe and a network. It gives the same steps on every machine.
"""
