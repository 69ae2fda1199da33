"""The work of ``longrl convert``, ``inspect`` and ``verify``.

``loader_*.py`` and ``saver_*.py`` are the plug-ins of ``convert``.
"""
