"""What runs beside the agent, in a process of its own: everything that touches TensorRT and CUDA.

A GPU library that crashes, hangs or eats memory takes this process with it and not the agent. Standard library and
``tensorrt`` only, in the syntax of Python 3.8, so that it runs under whichever interpreter of the machine has the
bindings (on a Jetson the system's), whatever interpreter runs the agent. Started by ``agent.inference.tensorrt.child``.

    api.py    the part of TensorRT's API that is used, typed
    cuda.py   the CUDA driver through ctypes
    main.py   probe, build, serve
"""
