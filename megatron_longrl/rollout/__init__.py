"""The engine protocol, vLLM within the trainer and beside it, the reference engine, and records of
rollouts on disk.
"""
