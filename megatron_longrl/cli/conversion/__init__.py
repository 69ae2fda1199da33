"""What ``longrl convert``, ``inspect`` and ``verify`` do.

``loader_*.py`` and ``saver_*.py`` are the plug-ins of ``convert``.
"""
