"""Responses: the engine protocol, vLLM behind it, and the store of media embeddings."""
