"""The name in version 0.1 of `dataset_scripts.contexts.context_store`."""

from dataset_scripts.contexts.context_store import ContextStore

__all__ = ["ContextStore"]
