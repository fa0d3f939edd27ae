"""The module that pydantic has its fields in."""

from pydantic import FieldInfo

__all__ = ["FieldInfo"]
