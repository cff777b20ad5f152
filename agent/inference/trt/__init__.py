"""The agent's side of TensorRT: nothing here imports it. A child process does, see ``agent.tensorrt_child``.

child.py    one child process and the socket to it
probe.py    is there a GPU that TensorRT can use, and which
cache.py    engines on disk, each good for one machine, version and network
worker.py   a child that serves: the backend
fallback.py   INT8, else FP16, else the reason why neither serves
"""
