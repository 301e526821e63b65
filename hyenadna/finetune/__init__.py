"""Adapting a pretrained model to a task."""
