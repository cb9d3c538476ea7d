"""Configs of mmdet 2 and mmseg 0, those of the official FocalNet code among them, become ours."""

from .migration import Migration, migrate

__all__ = ['Migration', 'migrate']
