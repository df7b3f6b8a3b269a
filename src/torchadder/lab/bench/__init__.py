"""Measure against named baselines: same shapes, same threads, same run; medians of interleaved repetitions.

    layers     single layers, against torch's convolution and other code
    training   whole training steps and their memory
    latency    inference of whole networks in several runtimes (networks writes them, candidates opens and times them),
               and the integer engine step by step

timing holds the clocks, process runs a candidate in a process of its own, cpu_mask hides AVX-512 from it.
"""
