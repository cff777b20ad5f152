"""The workstation side: records, networks, INT8 files, and the proof of what each step costs.

Reading order, from a record to a bundle:

1. ``cli``: the stages; ``config``: what a build depends on.
2. ``data/records``: the table and the samples; ``data/views``: the windows that are judged; ``data/augment`` and
   ``data/bank``: the windows that are learned from; ``data/generator``: synthetic ones.
3. ``train/lab``: which records a fold, or a region left out, learns from; ``train/methods``: every method that is
   compared; ``train/fit``: windows, targets, loss; ``train/loop``: the training itself.
4. ``quantise/export``, ``int8``, ``qdq``: from the network to INT8; ``rules``: what TensorRT takes;
   ``bundle``, ``golden``: what is written; ``verify``: what each step changed.
5. ``study/studies``, ``by_region``, ``compare``: answers of networks that never saw the event, or the region;
   ``study/tables``, ``card``: what is said of them.
6. ``pipeline``: all of it, stage by stage.

``teach/lesson`` begins another way, ``talus teach``: a shipped bundle and a site's labels, without torch.
"""

import agent  # noqa: F401 - before ONNX Runtime, which reports to its maker otherwise
